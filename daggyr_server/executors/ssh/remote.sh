# What runs on an SSH target: functions for a POSIX shell, which reads them, and then calls of them, from its standard input.
#
# shell.py sends this file to each /bin/sh that it starts there; nothing is installed. Every word that comes from a task arrives as
# one quoted word of a call. The working directory is the pool's folder, which has a folder for each attempt, KEY:
#
#   lock       made once, by whoever starts the attempt, or by whoever makes sure that nobody will: "PID BIRTH" of that shell
#   w, pid     "PID BIRTH BOOT" of the attempt's warden, a shell that waits for the task; "PID BIRTH" of the task itself
#   cause      why the task is being ended: `kill` or `timeout`; the first counts
#   about      "WHOLE NAME=UNITS...": how much of its standard output is wanted whole, in bytes, and its resources
#   stdin, stdout, stderr, said (what the warden's shell says of a signal), refused (why it could not be started)
#   result     the line that the warden also writes to the shell's output, in the end
#
# A process is known by its number and its birth, field 22 of /proc/PID/stat (proc(5)). Times are those of /proc/uptime. Answers are lines;
# `.` at the end of one says that it is whole. Variables start with dg_, so that none of the account's or a task's is changed.
# Works in dash, busybox sh and bash. It never ends anything but attempts of its own folder.

dg_mask=$(umask)
umask 077

# The birth of a process in dg_born; empty if there is none.
dg_birth() {
    dg_born=
    { read -r dg_line <"/proc/$1/stat"; } 2>/dev/null || return 0
    set -- ${dg_line##*) }
    dg_born=${20}
}

dg_uptime() {
    read -r dg_up dg_line </proc/uptime
}

# Whether the attempt's warden is there.
dg_alive() {
    dg_w= dg_b= dg_o=
    { read -r dg_w dg_b dg_o <"$1/w"; } 2>/dev/null || return 1
    [ "$dg_o" = "$dg_boot" ] || return 1
    dg_birth "$dg_w"
    [ "$dg_born" = "$dg_b" ]
}

# dg_once TEXT FILE: make a file, if nobody has made it yet.
dg_once() {
    set -C
    if { echo "$1" >"$2"; } 2>/dev/null; then
        set +C
        return 0
    fi
    set +C
    return 1
}

# dg_hello TOKEN EPOCH FENCE DIRECTORY FOLDER HOME TAKE: go to the pool's folder, tell what this host has. With TAKE, shells that came before
# start nothing any more. DIRECTORY and HOME may be empty; relative ones count from the account's home.
dg_hello() {
    dg_fence="$2 $3"
    for dg_tool in base64 head ls mkdir rm setsid sleep tail tr wc; do
        command -v "$dg_tool" >/dev/null || {
            printf 'FAULT %s it has no %s, which attempts need\n' "$1" "$dg_tool"
            return
        }
    done
    dg_setsid=$(command -v setsid)
    dg_env=$(command -v env)
    dg_grep=$(command -v grep)
    # A shell has what it starts in the background ignore these two, and most cannot take that back.
    dg_reset=
    if "$dg_env" --default-signal=INT,QUIT true; then dg_reset=--default-signal=INT,QUIT; fi 2>/dev/null
    for dg_name in $("$dg_env" | tr -cd '[:alnum:]_=\n' | while IFS== read -r dg_name dg_line; do echo "$dg_name"; done); do
        case $dg_name in DAGGYR_*) unset "$dg_name" ;; esac
    done
    cd -- "$HOME" 2>/dev/null || cd /
    dg_home=$PWD
    dg_said=$(
        case $4 in
            '') dg_base=${XDG_STATE_HOME:-$dg_home/.local/state}/daggyr ;;
            *) dg_base=$4 ;;
        esac
        exec 2>&1
        mkdir -p -- "$dg_base/$5" && CDPATH= cd -P -- "$dg_base/$5" && "$dg_env" echo "$3" >shell.$$ && rm shell.$$ && echo "+$PWD"
    )
    case $dg_said in
        +*) dg_root=${dg_said#+} ;;
        *)
            printf 'FAULT %s %s\n' "$1" "$(echo "$dg_said" | tr '\n' ' ')"
            return
            ;;
    esac
    if [ -n "$6" ]; then
        CDPATH= cd -- "$6" 2>/dev/null || {
            printf 'FAULT %s it has no folder %s, which the setting working_directory names\n' "$1" "$6"
            return
        }
        dg_home=$PWD
    fi
    cd -- "$dg_root"
    dg_name=
    { read -r dg_name dg_line <fence; } 2>/dev/null
    if [ "${dg_name:-0}" -gt "$2" ]; then
        printf 'FAULT %s a newer start of this coordinator uses it: this one is out of date and should be ended\n' "$1"
        return
    fi
    if [ -n "$7" ]; then echo "$dg_fence" >fence; fi
    read -r dg_boot </proc/sys/kernel/random/boot_id
    dg_birth $$
    dg_self="$$ $dg_born"
    dg_cores=$(nproc 2>/dev/null) || dg_cores=1
    while read -r dg_name dg_memory dg_line; do
        case $dg_name in MemTotal:) break ;; esac
    done </proc/meminfo
    dg_uptime
    exec 2>/dev/null
    printf 'READY %s %s %s %s %s\n' "$1" "$dg_up" "$dg_boot" "$dg_cores" "$dg_memory"
}

# dg_here: be in the pool's folder, though somebody has made it anew.
dg_here() {
    cd -- "$dg_root"
}

# -- starting ----------------------------------------------------------------------------------------------------------

# dg_new KEY...: make folders.
dg_new() {
    if mkdir -p -- "$@"; then return; fi
    # Somebody has removed the pool's folder.
    mkdir -p -- "$dg_root" && cd -- "$dg_root" && echo "$dg_fence" >fence && mkdir -p -- "$@"
}

# dg_in KEY FORMAT TEXT: an attempt's standard input.
dg_in() {
    [ -d "$1" ] || dg_new "$1"
    printf "$2" "$3" >"$1/stdin"
}

# dg_go KEY TIMEOUT GRACE ABOUT INPUT DIRECTORY NAMES ODD [NAME=VALUE]... [ODD NAME=VALUE]... COMMAND...: start an attempt, once. TIMEOUT and
# GRACE are seconds; TIMEOUT, INPUT (stdin) and DIRECTORY may be empty. Says H if somebody has started it, N if this host cannot.
dg_go() {
    [ -d "$1" ] || dg_new "$1" # somebody has removed it
    if ! dg_once "$dg_self" "$1/lock"; then
        if [ -s "$1/lock" ]; then echo "H $1 ."; else echo "N $1 ."; fi
        return
    fi
    dg_line=
    { read -r dg_line <fence; } 2>/dev/null
    if [ "$dg_line" != "$dg_fence" ]; then
        echo "0 0 -" >"$1/w"
        echo "N $1 ."
        return
    fi
    dg_watch "$@" &
}

# The warden of one attempt.
dg_watch() {
    trap '' HUP PIPE
    dg_birth self
    dg_w=${dg_line%% *}
    if ! { echo "$4" >"$1/about" && echo "$dg_w $dg_born $dg_boot" >"$1/w"; }; then
        echo "N $1 ."
        exit
    fi
    exec </dev/null 2>"$1/said"
    dg_key=$1 dg_limit=$2 dg_grace=$3
    dg_uptime
    dg_began=$dg_up
    # From here to `wait` as little as can be: a shell says nothing of what ended before it waited for it.
    dg_launch "$@" &
    dg_task=$!
    dg_timer=
    if [ -n "$dg_limit" ]; then
        dg_time &
        dg_timer=$!
    fi
    wait "$dg_task"
    dg_code=$?
    dg_flags=-
    # Shells say on standard error which signal has ended what they waited for; for these three not all do.
    case $dg_code in 130 | 141 | 143) dg_flags=s ;; esac
    if [ "$dg_code" -gt 128 ] && [ -s "$1/said" ]; then dg_flags=s; fi
    { times; } >"$1/times" # in braces, because what is redirected in vain for a special built-in ends the shell
    [ -z "$dg_timer" ] || kill "$dg_timer"
    dg_uptime
    kill -KILL "-$dg_task" # whoever is left of its group; dg_sweep waits for them
    if [ -s "$1/stdout" ]; then dg_flags=${dg_flags}o; fi
    if [ -s "$1/stderr" ]; then dg_flags=${dg_flags}e; fi
    [ -d "$1" ] || dg_flags=${dg_flags}g
    dg_line= dg_cause= dg_refused=
    { read -r dg_line && read -r dg_line; } <"$1/times"
    if [ -e "$1/cause" ]; then read -r dg_cause <"$1/cause"; fi
    if [ -e "$1/refused" ]; then read -r dg_refused <"$1/refused"; fi
    if [ "$dg_cause" = timeout ]; then dg_cause=$dg_cause:$dg_limit; fi
    dg_line="E $1 $dg_code $dg_flags ${dg_cause:--} ${dg_refused:--} $dg_began $dg_up ${dg_line:--}"
    echo "$dg_line $dg_boot ." >"$1/result"
    echo "$dg_line - ."
    exit
}

# Ends the task when its time is over.
dg_time() {
    dg_nap=
    trap 'kill "$dg_nap"; exit' TERM
    sleep "$dg_limit" >/dev/null &
    dg_nap=$!
    wait "$dg_nap"
    dg_once timeout "$dg_key/cause"
    kill -TERM "-$dg_task" || kill -TERM "$dg_task"
    sleep "$dg_grace" >/dev/null &
    dg_nap=$!
    wait "$dg_nap"
    kill -KILL "-$dg_task"
    exit
}

# Becomes the task; as dg_go. The words of the command, and before them those of odd names, are what is left after the shifts.
dg_launch() {
    dg_birth self
    echo "${dg_line%% *} $dg_born" >"$1/pid"
    dg_attempt=$1
    dg_key=$dg_root/$1 dg_input=${5:+$dg_root/$1/}${5:-/dev/null} dg_names=$7 dg_odd=$8
    cd -- "$dg_home" || dg_refuse home
    if [ -n "$6" ]; then
        if [ ! -d "$6" ]; then dg_refuse folder; fi
        CDPATH= cd -- "$6" || dg_refuse enter
    fi
    unset OLDPWD
    shift 8
    while [ "$dg_names" -gt 0 ]; do
        export "$1"
        shift
        dg_names=$((dg_names - 1))
    done
    PATH=${PATH-/usr/local/bin:/usr/bin:/bin}
    eval "dg_program=\${$((dg_odd + 1))}"
    case $dg_program in
        */*)
            if [ -d "$dg_program" ]; then dg_refuse directory; fi
            if [ ! -e "$dg_program" ]; then dg_refuse program; fi
            if [ ! -x "$dg_program" ]; then dg_refuse executable; fi
            ;;
        *) dg_look_up ;;
    esac
    SSH_DAGGYR_FOLDER=$dg_key/
    export SSH_DAGGYR_FOLDER
    { echo "S $dg_attempt $dg_up ."; } 2>/dev/null
    trap - HUP INT PIPE QUIT
    exec <"$dg_input" >>"$dg_key/stdout" 2>>"$dg_key/stderr"
    umask "$dg_mask"
    if [ "$dg_odd" -gt 0 ]; then
        dg_shuffle "$@"
    elif [ -n "$dg_reset" ]; then
        exec "$dg_env" "$dg_reset" "$dg_setsid" -- "$@"
    fi
    exec "$dg_setsid" -- "$@"
}

# With variables that no shell can have: env(1) sets them. The words go once round, with setsid's between the two kinds.
dg_shuffle() {
    dg_left=$#
    while [ "$dg_left" -gt 0 ]; do
        if [ "$dg_odd" -eq 0 ]; then set -- "$@" "$dg_setsid" --; fi
        dg_odd=$((dg_odd - 1))
        set -- "$@" "$1"
        shift
        dg_left=$((dg_left - 1))
    done
    exec "$dg_env" ${dg_reset:+"$dg_reset"} -- "$@"
}

# As execvp(3) does it.
dg_look_up() {
    set -f
    IFS=:
    dg_found=program
    for dg_folder in $PATH; do
        dg_file=${dg_folder:-.}/$dg_program
        [ -f "$dg_file" ] || continue
        if [ -x "$dg_file" ]; then
            dg_found=
            break
        fi
        dg_found=executable
    done
    unset IFS
    set +f
    if [ -n "$dg_found" ]; then dg_refuse "$dg_found"; fi
}

dg_refuse() {
    echo "$1" >"$dg_key/refused"
    exit 1
}

# -- ending ------------------------------------------------------------------------------------------------------------

# dg_stop NAP KEY...: end attempts that run; SIGKILL after 20 naps of so many seconds. It naps no longer than they run.
dg_stop() {
    dg_nap=$1
    shift
    for dg_key; do
        if [ -d "$dg_key" ] && [ ! -e "$dg_key/result" ]; then
            dg_once kill "$dg_key/cause"
            dg_end "$dg_key" >/dev/null </dev/null &
        fi
    done
}

dg_end() {
    dg_turn=0
    until [ -s "$1/pid" ] || [ "$dg_turn" -ge 200 ]; do
        sleep 0.05
        dg_turn=$((dg_turn + 1))
    done
    { dg_alive "$1" && read -r dg_task dg_line <"$1/pid"; } || exit
    kill -TERM "-$dg_task" || kill -TERM "$dg_task"
    dg_turn=0
    while dg_alive "$1" && [ ! -e "$1/result" ]; do
        if [ "$dg_turn" -ge 20 ]; then
            kill -KILL "-$dg_task"
            break
        fi
        sleep "$dg_nap" || sleep 1 # where there are whole seconds only
        dg_turn=$((dg_turn + 1))
    done
    exit
}

# dg_sweep KEY...: end what attempts that have ended left behind: who still holds one of their files, or has their folder in its environment.
dg_sweep() {
    [ -n "$dg_grep" ] || return 0
    dg_turn=0
    while [ "$dg_turn" -lt 20 ]; do
        dg_found=$(dg_find "$@")
        [ -n "$dg_found" ] || return 0
        kill -KILL $dg_found
        if [ "$dg_turn" -gt 0 ]; then sleep 0.05; fi
        dg_turn=$((dg_turn + 1))
    done
}

# The numbers of such processes.
dg_find() {
    dg_left=$#
    for dg_key; do set -- "$@" -e "$dg_root/$dg_key/"; done
    shift "$dg_left"
    "$dg_grep" -l -F "$@" /proc/[0-9]*/environ | while IFS=/ read -r dg_line dg_line dg_found dg_line; do echo "$dg_found"; done
    ls -l /proc/[0-9]*/fd/[012] | "$dg_grep" -F "$@" | while read -r dg_line; do
        dg_line=${dg_line##* /proc/}
        echo "${dg_line%%/*}"
    done
}

# dg_bury KEY...: end whatever there still is of attempts that nobody wants, or whose warden has gone.
dg_bury() {
    for dg_key; do
        if dg_alive "$dg_key"; then kill -KILL "$dg_w"; fi
        dg_task= dg_b=
        { read -r dg_task dg_b <"$dg_key/pid"; } || continue
        dg_birth "$dg_task"
        if [ -n "$dg_born" ] && [ "$dg_born" = "$dg_b" ]; then kill -KILL "-$dg_task" || kill -KILL "$dg_task"; fi
    done
    dg_sweep "$@"
}

# -- telling -----------------------------------------------------------------------------------------------------------

# dg_look CLAIM KEY...: what became of attempts: E and its result, R: it runs, U: it is being started, X: it was begun, and nobody is there any
# more, A: it was never started. With CLAIM it never will be, once A was said.
dg_look() {
    dg_claim=$1
    shift
    for dg_key; do
        dg_line=
        if dg_alive "$dg_key"; then
            dg_line=
            { read -r dg_line <"$dg_key/about"; }
            echo "R $dg_key ${dg_line:-0} ."
        elif { read -r dg_line <"$dg_key/result"; } && [ "${dg_line##* }" = . ]; then
            echo "$dg_line"
        elif [ -n "$dg_claim" ] && mkdir -p -- "$dg_key" && dg_once "$dg_self" "$dg_key/lock"; then
            echo "A $dg_key ."
        elif { read -r dg_w dg_b <"$dg_key/lock"; } && dg_birth "$dg_w" && [ "$dg_born" = "$dg_b" ] && [ ! -e "$dg_key/w" ] &&
            [ "$dg_w $dg_b" != "$dg_self" ]; then
            echo "U $dg_key ."
        elif [ -e "$dg_key/lock" ]; then
            echo "X $dg_key ."
        else
            echo "G $dg_key ."
        fi
    done
}

# dg_all: which attempts have a folder.
dg_all() {
    for dg_key in *-*-*; do
        if [ -d "$dg_key" ]; then echo "D $dg_key ."; fi
    done
}

# dg_give NAME...: what is in files, as KEY/stdout: all of it, or a head and a tail of what is longer than is wanted.
dg_give() {
    wc -c -- "$@" | while read -r dg_size dg_name; do
        dg_limit=0
        case $dg_name in
            */stdout) { read -r dg_limit dg_line <"${dg_name%/*}/about"; } ;;
            */stderr) ;;
            *) continue ;;
        esac
        if [ "${dg_limit:-0}" -eq 0 ]; then dg_limit=1048576; fi
        if [ "$dg_size" -le "$dg_limit" ]; then
            echo "O $dg_name $dg_size $dg_size 0"
            base64 "$dg_name"
        else
            dg_half=$((dg_limit < 1048576 ? dg_limit / 2 : 524288))
            echo "O $dg_name $dg_size $dg_half $dg_half"
            { head -c "$dg_half" "$dg_name"; tail -c "+$((dg_size - dg_half + 1))" "$dg_name" | head -c "$dg_half"; } | base64
        fi
        echo .
    done
}

# dg_peek NAME OFFSET MOST: a piece of a file that grows.
dg_peek() {
    dg_size=$(wc -c <"$1") || dg_size=0
    dg_offset=$2
    if [ "$((dg_size - dg_offset))" -gt 1048576 ]; then dg_offset=$((dg_size - 524288)); fi
    if [ "$dg_size" -gt "$dg_offset" ]; then
        echo "P $dg_offset"
        tail -c "+$((dg_offset + 1))" "$1" | head -c "$3" | base64
        echo .
    fi
}

# dg_drop KEY...: the results are durable elsewhere.
dg_drop() {
    rm -rf -- "$@"
}

# dg_done TICKET: all that was asked before has been answered.
dg_done() {
    echo "Z $1 ."
}
