#!/usr/bin/env bash
# The forward tunnel from end to end, as scripts/docker/docker-compose.yml sets it up: certificates, an echo service,
# server and client; bytes through it, a stranger at the door, half a close, a server that is killed and comes back.
#
#   bash scripts/test_tunnel.sh             with containers where docker compose works, else without
#   bash scripts/test_tunnel.sh --docker    with containers, or not at all
#   bash scripts/test_tunnel.sh --local     the programs themselves, on free ports of 127.0.0.1
#   bash scripts/test_tunnel.sh --keep      leave the containers and their volumes when done
#   bash scripts/test_tunnel.sh --no-build  take the images that are there
#   MTT_BIN_DIR=DIR bash scripts/test_tunnel.sh --local    with programs that are already built
#
# Containers that ran before go on running. Nothing else stays, and nothing is ended that was not started here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

how=auto keep=no build=--build
while [ "$#" -gt 0 ]; do
    case "$1" in
        --docker) how=docker ;;
        --local) how=local ;;
        --keep) keep=yes ;;
        --no-build) build=--no-build ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "unknown option '$1'; try --help" >&2; exit 2 ;;
    esac
    shift
done

folder=$(mktemp -d "${TMPDIR:-/tmp}/minitcptunnel-test.XXXXXX")
visitor='' ended=no

# --- With containers -------------------------------------------------------------------------------------------------

compose=()
find_compose() {
    have docker && docker info >/dev/null 2>&1 || return 1
    # The list of ignored files and the cache of the Dockerfiles need it; newer versions have it by default.
    export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
    elif have docker-compose; then
        compose=(docker-compose)
    else
        return 1
    fi
    compose+=(-f scripts/docker/docker-compose.yml)
}

docker_begin() {
    client_port=1080 server_port=8443
    ran_before=$("${compose[@]}" ps -q tunnel-client 2>/dev/null || true)
    "${compose[@]}" up "$build" -d
}
docker_run() { local service=$1; shift; "${compose[@]}" exec -T "tunnel-$service" "/usr/local/bin/minitcptunnel-$service" "$@"; }
docker_check() { docker_run "$1" health --config "/app/$1_config.yaml"; }
docker_kill() { "${compose[@]}" kill "tunnel-$1"; }
docker_start() { "${compose[@]}" start "tunnel-$1"; }
docker_log() { "${compose[@]}" logs --no-color "tunnel-$1"; }
docker_stop() {
    "${compose[@]}" stop "tunnel-$1"
    # Its number, as the engine has it.
    local code
    code=$(docker inspect --format '{{.State.ExitCode}}' "$("${compose[@]}" ps -a -q "tunnel-$1")")
    [ "$code" = 0 ] || { say "$1 ended with exit code $code"; return 1; }
    say "$1 stopped, exit code 0"
}
docker_end() {
    if [ -n "${ran_before:-}" ]; then
        "${compose[@]}" up -d --no-build
    elif [ "$keep" = no ]; then
        "${compose[@]}" down -v
    fi
}

# --- Without -----------------------------------------------------------------------------------------------------------

# Process ids by service: what is not here was not started here.
declare -A pids=()

local_begin() {
    if [ -n "${MTT_BIN_DIR:-}" ]; then
        bin=$(cd "$MTT_BIN_DIR" && pwd)
    else
        need_cargo
        say "building release programs (a few minutes the first time)"
        cargo build --release --locked -p minitcptunnel-server -p minitcptunnel-client
        bin=$(target_directory)/release
    fi
    "$bin/minitcptunnel-server" certs init --host tunnel-server --host localhost --ip 127.0.0.1 --dir "$folder/certs" >"$folder/certs.out"
    "$bin/minitcptunnel-server" certs client client --dir "$folder/certs" >>"$folder/certs.out"
    grep -F "$folder" "$folder/certs.out" | grep -F "good until" | sed "s#$folder/##"
    python3 scripts/tunnel_visitor.py echo >"$folder/echo.log" 2>&1 &
    pids[echo]=$!
    wait_until "the echo service" grep -q "^echo " "$folder/echo.log"
    local echo_port
    echo_port=$(sed -n 's/^echo //p' "$folder/echo.log")
    read -r client_port server_port <<<"$(python3 scripts/tunnel_visitor.py ports 2)"
    # The files of the containers, with this machine's names for the same things.
    sed -e "s/port: 8443/port: $server_port/" -e "s/host: 0.0.0.0/host: 127.0.0.1/" \
        -e "s/host: echo-server.*/host: 127.0.0.1/" -e "s/port: 8080/port: $echo_port/" \
        scripts/docker/server_config.yaml >"$folder/server_config.yaml"
    sed -e "s/port: 1080/port: $client_port/" -e "s/host: 0.0.0.0.*/host: 127.0.0.1/" \
        -e "s/host: tunnel-server.*/host: 127.0.0.1/" -e "s/port: 8443/port: $server_port/" \
        scripts/docker/client_config.yaml >"$folder/client_config.yaml"
    local_start server
    local_start client
}
local_check() { "$bin/minitcptunnel-$1" health --config "$folder/$1_config.yaml"; }
local_kill() { kill -KILL "${pids[$1]}"; wait "${pids[$1]}" 2>/dev/null || true; unset "pids[$1]"; }
local_start() {
    "$bin/minitcptunnel-$1" --config "$folder/$1_config.yaml" >>"$folder/$1.out" 2>&1 &
    pids[$1]=$!
}
# The file that the configuration names, not what the shell has caught.
local_log() { cat "$folder/logs/$1.log"; }
local_stop() {
    local pid=${pids[$1]} code=0
    unset "pids[$1]"
    kill -TERM "$pid"
    wait "$pid" || code=$?
    [ "$code" -eq 0 ] || { say "$1 ended with exit code $code after SIGTERM"; return 1; }
    say "$1 stopped, exit code 0"
}
local_end() {
    local pid
    for pid in "${pids[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    pids=()
}

# --- Both --------------------------------------------------------------------------------------------------------------

visit() { python3 scripts/tunnel_visitor.py "$@"; }

# wait_until WHAT COMMAND...: until the command succeeds; up to a minute.
wait_until() {
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@" >"$folder/waiting.out" 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "waited in vain for $what:"
            cat "$folder/waiting.out"
            return 1
        fi
        sleep 0.1
    done
}

# said SERVICE TEXT: is it in the log?
said() { "${how}_log" "$1" >"$folder/$1.said" 2>&1 && grep -qF -- "$2" "$folder/$1.said"; }

finish() {
    local code=$?
    trap - EXIT INT TERM
    if [ -n "$visitor" ]; then
        kill -KILL "$visitor" 2>/dev/null || true
        wait "$visitor" 2>/dev/null || true
    fi
    if [ "$code" -ne 0 ] && [ "$ended" = no ] && [ "$how" != auto ]; then
        for service in server client; do
            printf '\n'
            say "the last lines of the $service"
            "${how}_log" "$service" 2>&1 | tail -n 25 || true
        done
    fi
    [ "$how" = auto ] || "${how}_end" || true
    rm -rf "$folder"
    if [ "$code" -ne 0 ]; then
        printf '\n'
        say "FAILURE"
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

have python3 || apt_install python3
case "$how" in
    auto) if find_compose; then how=docker; else how=local; say "docker compose is not usable here: without containers"; fi ;;
    docker) find_compose || { how=auto; say "docker compose is not usable here; --local does without"; exit 1; } ;;
esac

say "1. certificates, an echo service, server and client"
"${how}_begin"

say "2. both say that they are well"
for service in server client; do
    wait_until "the $service" "${how}_check" "$service"
    sed 's/^/  /' "$folder/waiting.out"
done

say "3. a message and 16 MiB through the client's port $client_port"
visit message "$client_port"
visit bulk "$client_port" 16

say "4. a direction that ends leaves the other one open"
visit half-close "$client_port"

say "5. a stranger without a certificate, at the server's port $server_port"
visit stranger "$server_port"
wait_until "the server to say so" said server "shows no certificate"
grep -F "shows no certificate" "$folder/server.said" | tail -n 1 | sed 's/^/  /'

say "6. the server is killed in the middle of a connection, and started again while another one waits"
if [ "$how" = local ]; then reset=--reset; else reset=''; fi
# shellcheck disable=SC2086
python3 scripts/tunnel_visitor.py hold "$client_port" $reset >"$folder/held.out" 2>&1 &
visitor=$!
wait_until "a connection to be held" grep -q "^held" "$folder/held.out"
"${how}_kill" server
code=0
wait "$visitor" || code=$?
visitor=''
sed '/^held$/d' "$folder/held.out"
[ "$code" -eq 0 ]
python3 scripts/tunnel_visitor.py message "$client_port" >"$folder/waited.out" 2>&1 &
visitor=$!
wait_until "the client to miss the server" said client "next try in"
"${how}_start" server
wait "$visitor" || { cat "$folder/waited.out"; exit 1; }
visitor=''
cat "$folder/waited.out"

say "7. what the logs say about it"
wait_until "the statistics of a connection" said server "connection ended forward=default"
# As far as the line begins: the engine may put the container's name in front.
for service in server client; do
    "${how}_log" "$service" >"$folder/$service.said" 2>&1
    printf '  %s:\n' "$service"
    grep -E "listening on|connection ended|next try in|shows no certificate" "$folder/$service.said" | tail -n 5 | sed 's/^/    /'
done
grep -qF 'client="client"' "$folder/server.said" || { say "the server does not name its client"; exit 1; }
if grep -E " (ERROR|WARN) " "$folder/server.said" | grep -vF "shows no certificate"; then
    say "the server should have had nothing else to complain about"
    exit 1
fi

say "8. stopped in order"
"${how}_stop" client
"${how}_stop" server
ended=yes
printf '\n'
say "SUCCESS"
