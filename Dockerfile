# The image of both services: one binary, which does what its first argument says
# (order-svc, stock-svc, health). Base images are arguments, so that a mirror can stand in.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
# librdkafka is configured with a C and a C++ compiler and built with make; TLS and SCRAM to Kafka
# are OpenSSL's.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ make pkg-config libssl-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The caches make a second build one of our own crates only; what is in them is not in the image,
# therefore the copy in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --release --package halfmsg --bin halfmsg --features tls \
 && cp target/release/halfmsg /halfmsg

FROM ${DEBIAN_IMAGE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libssl3 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 halfmsg \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin halfmsg
COPY --from=build /halfmsg /usr/local/bin/halfmsg
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
# Loopback is the default everywhere else; in a container only the published port leads inside.
ENV HALFMSG_LISTEN=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD ["halfmsg", "health", "http://127.0.0.1:8080/health/ready"]
ENTRYPOINT ["halfmsg"]
CMD ["--help"]
