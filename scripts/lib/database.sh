# shellcheck shell=bash
# What the scripts of the database servers share: whose process a server is, where its data are, and
# the command line. To be sourced after common.sh and container.sh. The script sets
#   KIND          the name of its files and containers
#   SERVER_USER   the user that root runs the server as, where there is one
#   RUN_FILES, DIR_FILES   what start leaves in DIR/run and DIR, for wipe
# and defines find_programs, prepare, running, start_local, stop_local MODE, start_docker, say_url.

# The servers refuse to run as root: as OWNER then.
as_owner() {
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid="$OWNER" --regid="$(id -g "$OWNER")" --clear-groups -- "$@"
  else
    "$@"
  fi
}

choose_owner() {
  OWNER=$(id -un)
  if [ "$(id -u)" = 0 ]; then
    OWNER=$SERVER_USER
    id -u "$OWNER" >/dev/null 2>&1 || OWNER=nobody
  fi
}

# DIR/run holds data and log and belongs to OWNER; everything else in DIR is ours. In a directory
# that OWNER cannot enter (a private temporary one of root's) it is a link to a place of its own.
make_run() {
  if [ ! -e "$DIR/run" ]; then
    mkdir -p "$DIR/run"
    chown "$OWNER" "$DIR/run"
  fi
  as_owner test -w "$RUN" && return
  local place
  rmdir "$DIR/run" 2>/dev/null || die "the user $OWNER, whom the server runs as, can no longer enter $DIR"
  place=$(mktemp -d "/var/tmp/halfmsg-$KIND.XXXXXX")
  chown "$OWNER" "$place"
  ln -s "$place" "$DIR/run"
  RUN=$place
  DATA=$RUN/data
}

choose_port() {
  local port=''
  [ ! -f "$DIR/port" ] || read -r port <"$DIR/port"
  PORT=${WANT_PORT:-${port:-$(free_port 0)}}
  printf '%s\n' "$PORT" >"$DIR/port"
}

choose_password() {
  [ -s "$DIR/password" ] ||
    (umask 077; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$DIR/password")
  # shellcheck disable=SC2034  # for the script
  PASSWORD=$(cat "$DIR/password")
}

# --- the command -------------------------------------------------------------------------------

backend() {
  [ -s "$DIR/$KIND.backend" ] || servers_from find_programs >"$DIR/$KIND.backend"
  cat "$DIR/$KIND.backend"
}

start() { "start_$BACKEND"; say_url; }
stop() { if [ "$BACKEND" = docker ]; then container_stop "$NAME"; else stop_local fast; fi; }
# Not called kill: that is the shell's own.
kill_server() { if [ "$BACKEND" = docker ]; then container_kill "$NAME"; else stop_local immediate; fi; }
restart() { stop; start; }

status() {
  if [ "$BACKEND" = docker ]; then container_running "$NAME"; else find_programs && choose_owner && running; fi ||
    { say "not running"; exit 3; }
  read -r PORT <"$DIR/port"
  choose_password
  say_url
}

wipe() {
  kill_server
  [ "$BACKEND" != docker ] || container_wipe "$NAME"
  wipe_dir "$RUN" "${RUN_FILES[@]}"
  wipe_dir "$DIR" run port password "$KIND.backend" .lock "${DIR_FILES[@]}"
}

# database_command SCRIPT ARGUMENTS...: obeys the command line.
database_command() {
  local script=$1 verb=${2:-}
  shift
  shift || true
  WANT_DIR='' WANT_PORT=''
  while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage "$1 needs a value"
    case $1 in
      --dir) WANT_DIR=$2 ;;
      --port) is_port "$2" || usage "--port $2 is not a port"; WANT_PORT=$2 ;;
      *) usage "unknown option $1" ;;
    esac
    shift 2
  done
  case $verb in
    prepare) [ "$(servers_from find_programs)" = docker ] || prepare; return ;;
    start | stop | restart | status | wipe) ;;
    kill) verb=kill_server ;;
    *) sed -n '2,/^set -/p' "$script" | sed -n 's/^# \{0,1\}//p' >&2; exit 2 ;;
  esac
  [ -n "$WANT_DIR" ] || usage "--dir is needed"
  if [ "$verb" != start ] && [ ! -d "$WANT_DIR" ]; then
    case $verb in restart | status) die "$WANT_DIR is not there" ;; esac
    return 0
  fi
  DIR=$(absolute "$WANT_DIR")
  RUN=$(readlink -f "$DIR/run" || true)
  DATA=$RUN/data
  BACKEND=$(backend)
  NAME=$(container_name "$KIND" "$DIR")
  locked "$DIR/.lock" "$verb"
}
