# shellcheck shell=bash
# What the scripts share. Sourced, never run.

# say TEXT: one line of the script's own, told apart from the output of what it runs.
say() { printf '== %s\n' "$*"; }

# apt_install PACKAGE...: install Debian packages, as root or through sudo. Says what to do where it cannot.
apt_install() {
    [ "$#" -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        say "missing: $* (no apt on this system: please install them by hand)"
        return 1
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            say "missing: $* (neither root nor sudo: run 'apt-get install $*' as root first)"
            return 1
        fi
        as_root=(sudo)
        # Ask for a password only where somebody can answer.
        [ -t 0 ] || as_root=(sudo -n)
    fi
    say "installing: $*"
    # The packages' own services must not come up: tests start their own on their own ports. A policy that is
    # already there is the machine's own and stays.
    local guard=/usr/sbin/policy-rc.d made_guard=no
    # Left behind by an interrupt it would keep every later service of this machine from starting.
    trap '[ "${made_guard:-no}" = no ] || "${as_root[@]}" rm -f "$guard"; trap - INT TERM; kill -INT $$' INT TERM
    if [ ! -e "$guard" ]; then
        # shellcheck disable=SC2016
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$guard" >/dev/null && "${as_root[@]}" chmod 755 "$guard" && made_guard=yes
    fi
    local result=0
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=400 -qq update </dev/null || result=$?
    # A mirror that is half down may still have what is needed: let the install decide.
    [ "$result" -eq 0 ] || say "apt-get update ended with $result; trying to install all the same"
    result=0
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -o DPkg::Lock::Timeout=400 \
        -o Dpkg::Use-Pty=0 -qq install -y --no-install-recommends "$@" </dev/null >/dev/null || result=$?
    [ "$made_guard" = no ] || "${as_root[@]}" rm -f "$guard"
    trap - INT TERM
    if [ "$result" -ne 0 ]; then
        say "apt-get install ended with $result for: $*"
        return 1
    fi
}

# have COMMAND: is it there, also where only root usually looks?
have() { PATH="$PATH:/usr/sbin:/sbin:/usr/local/sbin" command -v "$1" >/dev/null 2>&1; }

# need_cargo: Rust itself is not in apt in a version that is new enough.
need_cargo() {
    if ! have cargo && [ -r "$HOME/.cargo/env" ]; then
        # shellcheck disable=SC1091
        . "$HOME/.cargo/env"
    fi
    if ! have cargo; then
        say "cargo is missing: install Rust (https://rustup.rs) and start again"
        return 1
    fi
}

# target_directory: where cargo puts what it builds here.
target_directory() {
    cargo metadata --no-deps --locked --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}

# host: the target that is this machine.
host() { rustc -vV | sed -n 's/^host: //p'; }

# cross_compilers: tells cargo what compiles and links for the targets that are not this machine. What is set already
# stays.
cross_compilers() {
    local target compiler archiver name here
    here=$(host)
    while read -r target compiler archiver; do
        [ "$target" != "$here" ] || continue
        name=${target//-/_}
        local linker=CARGO_TARGET_${name^^}_LINKER cc=CC_$name ar=AR_$name
        export "$linker=${!linker:-$compiler}" "$cc=${!cc:-$compiler}" "$ar=${!ar:-$archiver}"
    done <<'END'
aarch64-unknown-linux-gnu aarch64-linux-gnu-gcc aarch64-linux-gnu-ar
armv7-unknown-linux-gnueabihf arm-linux-gnueabihf-gcc arm-linux-gnueabihf-ar
x86_64-pc-windows-gnu x86_64-w64-mingw32-gcc-posix x86_64-w64-mingw32-ar
END
}

# limited SECONDS COMMAND...: ends the command, and what is in its process group, when it takes longer. A person at a
# terminal can do that alone, and there Ctrl+C would not reach what `timeout` runs.
limited() {
    local most=$1
    shift
    if { : >/dev/tty; } 2>/dev/null; then "$@"; else timeout -k 30 "$most" "$@"; fi
}

# wait_for PID LOG TEXT SECONDS: until the log holds the text; fails when the process ends or time is up.
wait_for() {
    local pid=$1 log=$2 text=$3 deadline=$((SECONDS + $4))
    until grep -qF -- "$text" "$log" 2>/dev/null; do
        if ! kill -0 "$pid" 2>/dev/null && ! grep -qF -- "$text" "$log"; then
            say "$(basename "$log" .log) ended before it said '$text'"
            return 1
        fi
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "$(basename "$log" .log) did not say '$text' in $4 s"
            return 1
        fi
        sleep 0.05
    done
}

# steps_begin [COMMAND]: from here on `step` counts; at the end of the script COMMAND runs (`table`, if none is given).
steps_begin() {
    steps=() seconds=() results=() failed=0 started=$SECONDS
    steps_said=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$steps_said'; ${1:-table}" EXIT
}

# table: what the steps so far took and came to.
table() {
    local i
    printf '\n%-44s %8s  %s\n' step seconds result
    for i in "${!steps[@]}"; do
        printf '%-44s %8s  %s\n' "${steps[$i]}" "${seconds[$i]}" "${results[$i]}"
    done
    printf '%-44s %8s\n' whole "$((SECONDS - started))"
}

# What a script ends with where this machine cannot have what it needs; it has said what that is.
readonly CANNOT_BE_TRIED=77

# step NAME COMMAND...: run, time, remember. A failed step does not hide what the later ones have to say. A function
# may leave a word for the table in `remark`.
step() {
    local name=$1 from=$SECONDS took code=0 step_out step_tee
    shift
    remark=''
    printf '\n'
    say "$name"
    # Signals to the whole group must not end what the table is still to go through.
    exec {step_out}> >(trap '' HUP INT TERM && exec tee "$steps_said/${#steps[@]}")
    step_tee=$!
    "$@" >&"$step_out" 2>&1 {step_out}>&- || code=$?
    exec {step_out}>&-
    took=$((SECONDS - from))
    # The last of it has to be there before anything else is said. What a step has left running may hold it back.
    timeout --foreground 20 tail -s 0.05 --pid="$step_tee" -f /dev/null || true
    steps+=("$name") seconds+=("$took")
    if [ "$code" -eq 0 ]; then
        results+=("ok${remark:+: $remark}")
    elif [ "$code" -eq "$CANNOT_BE_TRIED" ]; then
        results+=("skipped: ${remark:-cannot be tried here}")
    else
        results+=("FAILED ($code)${remark:+: $remark}")
        failed=$((failed + 1))
    fi
    return 0
}

# must NAME COMMAND...: as step, and nothing else makes sense without it.
must() {
    step "$@"
    case ${results[-1]} in
        skipped*) exit "$CANNOT_BE_TRIED" ;;
        FAILED*) exit 1 ;;
    esac
}

# missing WHAT...: for the return of a step that cannot be tried here without it; the table says so, too.
missing() {
    remark="$*"
    say "cannot be tried here: $remark"
    return "$CANNOT_BE_TRIED"
}

# steps_end: says how many failed, and again how those ended, which may be far above; fails if any did. Leaves the
# number of those that could not be tried in `skipped`.
steps_end() {
    local i
    skipped=0
    for i in "${!results[@]}"; do
        case ${results[$i]} in
            skipped*) skipped=$((skipped + 1)) ;;
            FAILED*)
                printf '\n'
                say "again, the end of the failed step '${steps[$i]}':"
                tail -n 80 "$steps_said/$i" | sed 's/^/| /' || true
                ;;
        esac
    done
    printf '\n'
    if [ "$failed" -gt 0 ]; then
        say "$failed of ${#steps[@]} steps failed"
        return 1
    fi
    if [ "$skipped" -gt 0 ]; then
        say "$((${#steps[@]} - skipped)) steps passed, $skipped skipped"
        return 0
    fi
    say "all ${#steps[@]} steps passed"
}
