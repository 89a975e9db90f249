# shellcheck shell=bash
# What the scripts share: messages, the cache, missing packages, free ports, and processes named by
# a pid file. To be sourced; it sets nothing but functions and the variables below.
#
# Rules: stdout belongs to the answer a caller reads (KAFKA_BROKERS=...), everything said to a person
# goes to stderr; a process is signalled only after /proc has shown that it is the one we started.

# Longest wait for another run of these scripts to release a lock (it may be downloading).
LOCK_SECONDS=600

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
usage() { say "$*"; exit 2; }

# cache_dir: where downloads outlive a run; created on demand.
cache_dir() {
  local dir="${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/halfmsg"
  mkdir -p "$dir" && printf '%s\n' "$dir"
}

# locked FILE COMMAND...: runs the command while no other run holds FILE. Servers are started through
# `detached`, which lets go of the locks: they would hold them for life.
LOCK_FDS=()
locked() {
  local file=$1 fd
  shift
  exec {fd}>"$file" || die "cannot write the lock file $file"
  flock -w "$LOCK_SECONDS" "$fd" || die "another run has held $file for $LOCK_SECONDS s"
  LOCK_FDS+=("$fd")
  "$@"
  unset 'LOCK_FDS[-1]'
  exec {fd}>&-
}

# detached LOG COMMAND...: in the background, in a session of its own, without our locks and input;
# sets DETACHED_PID.
detached() {
  local log=$1 fd
  shift
  (
    for fd in "${LOCK_FDS[@]}"; do exec {fd}>&-; done
    exec setsid "$@" </dev/null >"$log" 2>&1
  ) &
  # shellcheck disable=SC2034  # for the caller
  DETACHED_PID=$!
}

# --- missing packages --------------------------------------------------------------------------

can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -f /etc/debian_version ]; }

apt_quiet() {
  local log
  log="$(cache_dir)/apt.log"
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" \
    </dev/null >>"$log" 2>&1 || { tail -n 20 "$log" >&2; return 1; }
}

# The lists are read again when we have not done so for a day: an old list names files that are gone.
apt_lists() {
  local stamp
  stamp="$(cache_dir)/apt.updated"
  if [ -n "$(find "$stamp" -mmin -1440 2>/dev/null)" ] &&
    [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -print -quit 2>/dev/null)" ]; then
    return
  fi
  say "apt-get update"
  apt_quiet update || die "apt-get update failed"
  touch "$stamp"
}

# first_known PACKAGE...: the first that this distribution has (releases carry different Javas).
first_known() {
  local package
  for package in "$@"; do
    [ -z "$(apt-cache policy "$package" 2>/dev/null | sed -n 's/^  Candidate: \([^(].*\)/\1/p')" ] ||
      { printf '%s\n' "$package"; return 0; }
  done
  return 1
}

apt_install_locked() {
  say "installing $*"
  apt_quiet install -y --no-install-recommends "$@" || die "apt-get install $* failed"
}
apt_install() { locked "$(cache_dir)/apt.lock" apt_install_locked "$@"; }
apt_prepare() { locked "$(cache_dir)/apt.lock" apt_lists; }

# need COMMAND PACKAGE...: the command, installed where we may, else a sentence that says what to do.
need() {
  local command=$1
  shift
  command -v "$command" >/dev/null && return
  can_apt || die "$command is missing. Install it (Debian, Ubuntu: apt-get install $*)."
  apt_prepare
  apt_install "$@"
  command -v "$command" >/dev/null || die "$command is still missing after installing $*"
}

# need_build_tools: what `cargo build` uses of the system. librdkafka is configured with a C and a C++
# compiler and built with make; SQLite and zlib need a C compiler. cargo itself needs certificates. With
# curl the tests run what README.md lets one try.
need_build_tools() {
  command -v cargo >/dev/null || die "cargo is missing. Install Rust as https://rustup.rs says."
  need cc gcc libc6-dev
  need c++ g++
  need make make
  need curl curl
  if can_apt && [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
    apt_prepare
    apt_install ca-certificates
  fi
}

# need_tls_tools: what the feature `tls` uses besides. The headers have no command to be known by.
need_tls_tools() {
  need pkg-config pkg-config
  pkg-config --exists openssl && return
  can_apt || die "OpenSSL's headers are missing. Install them (Debian, Ubuntu: apt-get install libssl-dev)."
  apt_prepare
  apt_install libssl-dev
  pkg-config --exists openssl || die "OpenSSL's headers are still missing after installing libssl-dev"
}

# need_browser: the console is tested in a real browser, driven by chromedriver; the two are of one version.
need_browser() {
  [ -n "${HALFMSG_TEST_CHROMEDRIVER:-}" ] || need chromedriver chromium-driver chromium
  [ -n "${HALFMSG_TEST_CHROMIUM:-}" ] || need chromium chromium
}

# need_promtool: the alert rules are checked and tested with it; sets PROMTOOL. Of Debian's package only this
# program is taken, into the cache: installed, the package would start a server.
need_promtool() {
  PROMTOOL=${HALFMSG_TEST_PROMTOOL:-$(command -v promtool || true)}
  [ -z "$PROMTOOL" ] || return 0
  PROMTOOL=$(cache_dir)/promtool
  [ -x "$PROMTOOL" ] || locked "$(cache_dir)/promtool.lock" fetch_promtool
}
fetch_promtool() {
  [ ! -x "$PROMTOOL" ] || return 0
  local dir
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "promtool is missing. It comes with Prometheus; put it into the path, or name it with HALFMSG_TEST_PROMTOOL."
  ! can_apt || apt_prepare
  say "fetching promtool"
  dir=$(mktemp -d)
  (cd "$dir" && apt_quiet download prometheus && dpkg-deb -x prometheus_*.deb .) && mv "$dir/usr/bin/promtool" "$PROMTOOL" ||
    { rm -rf -- "$dir"; die "promtool cannot be taken from the package prometheus"; }
  rm -rf -- "$dir"
}

# need_compose: docker-compose.yml is read by a real Compose, which needs no engine for that; sets COMPOSE. The
# plugin is taken where there is one; of distributions the newest that they have, which on Debian 12 is version 1.
need_compose() {
  COMPOSE=${HALFMSG_TEST_COMPOSE:-}
  [ -z "$COMPOSE" ] || return 0
  if docker compose version >/dev/null 2>&1; then COMPOSE='docker compose'; return; fi
  COMPOSE=docker-compose
  command -v docker-compose >/dev/null && return
  can_apt || die "Docker Compose is missing. Install its plugin, or name it with HALFMSG_TEST_COMPOSE."
  apt_prepare
  apt_install "$(first_known docker-compose-v2 docker-compose || echo docker-compose)"
  if docker compose version >/dev/null 2>&1; then COMPOSE='docker compose'; return; fi
  # Ubuntu's package has the plugin alone, which is a program too.
  command -v docker-compose >/dev/null || COMPOSE=/usr/libexec/docker/cli-plugins/docker-compose
  command -v "$COMPOSE" >/dev/null || die "Docker Compose is still missing after installing it"
}

# --- ports -------------------------------------------------------------------------------------

port_taken() {
  local hex
  hex=$(printf ':%04X ' "$1")
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qF "$hex"
}

# free_port [NOT]: a port that nothing uses now, below the range that the kernel gives to outgoing
# connections, and below those that the tests give to services (tests/suite/services/ports.rs), so that it
# stays free while the server that owns it is down.
free_port() {
  local not=${1:-0} low=10000 high=18000 below port try
  read -r below _ </proc/sys/net/ipv4/ip_local_port_range || below=$high
  [ "$below" -gt "$high" ] || high=$below
  [ "$high" -gt $((low + 1000)) ] || high=65000
  for try in {1..200}; do
    port=$((low + (RANDOM * 32768 + RANDOM) % (high - low)))
    if [ "$port" != "$not" ] && ! port_taken "$port"; then printf '%s\n' "$port"; return; fi
  done
  die "no free port found in $try attempts"
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

is_port() { [[ $1 =~ ^[0-9]{1,5}$ ]] && [ "$1" -ge 1 ] && [ "$1" -le 65535 ]; }

# --- processes ---------------------------------------------------------------------------------

# owns PID MARK: PID lives and MARK is one whole argument of its command line. A no is asked again:
# while a process executes another program, its command line is empty or cut short for a moment.
# (A zombie's stays empty; it has no executable any more.)
owns() {
  [[ ${1:-} =~ ^[0-9]+$ ]] || return 1
  local argument
  for _ in 1 2 3 4 5; do
    while IFS= read -r -d '' argument; do
      [ "$argument" != "$2" ] || return 0
    done 2>/dev/null <"/proc/$1/cmdline" || true
    [ -e "/proc/$1/exe" ] || return 1
    sleep 0.05
  done
  return 1
}

# gone PID MARK SECONDS: waits until the process has ended.
gone() {
  local tenths=$(($3 * 10))
  while owns "$1" "$2"; do
    [ $((tenths--)) -gt 0 ] || return 1
    sleep 0.1
  done
}

# end_process PID MARK SECONDS: asks it to end, and kills it when it has not done so in time.
end_process() {
  owns "$1" "$2" || return 0
  kill -TERM "$1" 2>/dev/null || true
  gone "$1" "$2" "$3" && return 0
  say "process $1 did not end within $3 s: killing it"
  kill_process "$1" "$2"
}

kill_process() {
  owns "$1" "$2" || return 0
  kill -KILL "$1" 2>/dev/null || true
  gone "$1" "$2" 10 || die "process $1 is still there after SIGKILL"
}

# --- directories of a server -------------------------------------------------------------------

# absolute DIR: created, as an absolute path without symbolic links.
absolute() { mkdir -p -- "$1" && (cd -- "$1" && pwd -P); }

# wipe_dir DIR NAME...: removes what we made in it, and the directory itself when that empties it.
wipe_dir() {
  local dir=$1 name
  shift
  for name in "$@"; do rm -rf -- "${dir:?}/$name"; done
  rmdir -- "$dir" 2>/dev/null || true
}

# docker_answers: an engine is there and may be used.
docker_answers() { command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; }
