# shellcheck shell=bash
# The same servers from Docker, for machines where they cannot be installed: one container per
# directory, named after it, whose data live as long as the container. To be sourced after common.sh.

# container_name KIND DIR
container_name() { printf 'halfmsg-%s-%s\n' "$1" "$(printf '%s' "$2" | sha256sum | cut -c1-16)"; }

container_exists() { docker container inspect "$1" >/dev/null 2>&1; }

container_running() { [ "$(docker container inspect -f '{{.State.Running}}' "$1" 2>/dev/null)" = true ]; }

# container_up NAME RUN-ARGUMENTS...: made on the first call, started again on later ones.
container_up() {
  local name=$1
  shift
  container_running "$name" && return
  if container_exists "$name"; then
    docker start "$name" >/dev/null
  else
    docker run --detach --name "$name" "$@" >/dev/null
  fi
}

# container_said NAME TEXT SECONDS: waits until its log since this start holds the text.
container_said() {
  local name=$1 text=$2 tenths=$(($3 * 2)) since
  since=$(docker container inspect -f '{{.State.StartedAt}}' "$name")
  while ! docker logs --since "$since" "$name" 2>&1 | grep -F -- "$text" >/dev/null; do
    container_running "$name" || { docker logs --tail 30 "$name" >&2; die "container $name ended"; }
    [ $((tenths--)) -gt 0 ] || { docker logs --tail 30 "$name" >&2; die "container $name is not ready after $3 s"; }
    sleep 0.5
  done
}

container_stop() { ! container_running "$1" || docker stop --time 30 "$1" >/dev/null; }
container_kill() { ! container_running "$1" || docker kill "$1" >/dev/null; }
container_pause() { docker pause "$1" >/dev/null; }
container_unpause() { docker unpause "$1" >/dev/null; }
container_wipe() { ! container_exists "$1" || docker rm --force --volumes "$1" >/dev/null; }

# servers_from HAVE: local or docker, as HALFMSG_SERVERS says; else local where the command HAVE
# succeeds or packages may be installed, else docker where an engine answers. (Where none does it is
# local again, which says what is missing.)
servers_from() {
  case ${HALFMSG_SERVERS:-} in
    local | docker) printf '%s\n' "$HALFMSG_SERVERS" ;;
    '') if "$1" || can_apt || ! docker_answers; then echo local; else echo docker; fi ;;
    *) die "HALFMSG_SERVERS is '$HALFMSG_SERVERS': local or docker" ;;
  esac
}
