# What runs on an SSH target: functions for a POSIX shell, which reads them, and then calls of them, from its standard input.
#
# shell.py sends attempt.sh and then this text to each /bin/sh that it starts there; nothing is installed. Every word that comes from a
# task is one quoted word of a call. The working directory is the pool's folder, which has a folder for each attempt, KEY:
#
#   lock       made once, by whoever starts the attempt, or by whoever makes sure that nobody will: "PID BIRTH" of that shell
#   w, pid     "PID BIRTH BOOT" of the attempt's warden, a shell that waits for the task; "PID BIRTH" of the task itself
#   about      "LIMIT NAME=UNITS...": how much of its standard output is kept whole, in bytes (kept.py), and its resources
#   result     the line that the warden also writes to the shell's output, in the end; zeros until then
#   stdin, stdout, stderr, cause, said, refused, times (attempt.sh says what they are)
#
# All of an attempt's files are made before its task is started, `result` and `pid` with room for what they will hold. So on a disk that
# is full nothing is started, and on one that fills meanwhile an end can be written down.
#
# A process is known by its number and its birth, field 22 of /proc/PID/stat (proc(5)). Times are those of /proc/uptime. Answers are
# lines; `.` at the end of one says that it is whole. Nothing here ends a process but those of attempts in its own folder.

# The birth of a process in dg_born, and its state in dg_state; both are empty if there is none.
dg_birth() {
    dg_born= dg_state=
    { read -r dg_line <"/proc/$1/stat"; } 2>/dev/null || return 0
    set -- ${dg_line##*) }
    dg_state=$1 dg_born=${20}
}

# dg_there PID BIRTH: whether a process has not ended. One that has ended keeps its number, in state Z, until its parent asks how it
# ended; a shell that waits for lines does not ask.
dg_there() {
    dg_birth "$1"
    [ -n "$dg_born" ] && [ "$dg_born" = "$2" ] && [ "$dg_state" != Z ]
}

dg_uptime() { read -r dg_up dg_line </proc/uptime; }

# Whether the attempt's warden is there.
dg_alive() {
    dg_w= dg_b= dg_o=
    { read -r dg_w dg_b dg_o <"$1/w"; } 2>/dev/null || return 1
    [ "$dg_o" = "$dg_boot" ] && dg_there "$dg_w" "$dg_b"
}

# dg_hello TOKEN FENCE DIRECTORY FOLDER HOME: go to the pool's folder, tell what this host has. FENCE is the line "EPOCH RANDOM TRACKER LIFE"
# of this connection; that of the last one is in the file `fence`, and is told. DIRECTORY and HOME may be empty; relative ones count from
# the account's home.
dg_hello() {
    dg_fence=$2
    for dg_tool in base64 head ls mkdir rm setsid sleep tail tr wc; do
        command -v "$dg_tool" >/dev/null || {
            printf 'FAULT %s it has no %s, which attempts need\n' "$1" "$dg_tool"
            return
        }
    done
    dg_find_tools
    for dg_name in $("$dg_env" | tr -cd '[:alnum:]_=\n' | while IFS== read -r dg_name dg_line; do echo "$dg_name"; done); do
        case $dg_name in DAGGYR_*) unset "$dg_name" ;; esac
    done
    cd -- "$HOME" 2>/dev/null || cd /
    dg_home=$PWD
    dg_said=$(
        case $3 in
            '') dg_base=${XDG_STATE_HOME:-$dg_home/.local/state}/daggyr ;;
            *) dg_base=$3 ;;
        esac
        exec 2>&1
        mkdir -p -- "$dg_base/$4" && CDPATH= cd -P -- "$dg_base/$4" && echo "+$PWD"
    )
    case $dg_said in
        +*) dg_root=${dg_said#+} ;;
        *)
            printf 'FAULT %s %s\n' "$1" "$(echo "$dg_said" | tr '\n' ' ')"
            return
            ;;
    esac
    if [ -n "$5" ]; then
        CDPATH= cd -- "$5" 2>/dev/null || {
            printf 'FAULT %s it has no folder %s, which the setting working_directory names\n' "$1" "$5"
            return
        }
        dg_home=$PWD
    fi
    cd -- "$dg_root"
    dg_last=
    { read -r dg_last <fence; } 2>/dev/null
    read -r dg_boot </proc/sys/kernel/random/boot_id
    dg_birth $$
    dg_self="$$ $dg_born"
    dg_host /proc/self/cgroup /sys/fs/cgroup /proc/meminfo 2>/dev/null
    dg_uptime
    exec 2>/dev/null
    printf 'READY %s %s %s %s %s %s\n' "$1" "$dg_up" "$dg_boot" "$dg_cores" "$dg_memory" "$dg_last"
}

# dg_take TOKEN: from now on, shells of earlier connections start nothing any more. Tells why files cannot be kept here, if that is so.
dg_take() {
    if dg_probe; then dg_said=; fi
    case $dg_said in
        '' | *'No space left'* | *'quota exceeded'*) ;;
        *)
            printf 'FAULT %s %s\n' "$1" "$dg_said"
            return
            ;;
    esac
    # On a full disk this empties the fence, which keeps earlier shells from starting anything as well.
    { "$dg_env" echo "$dg_fence" >fence; } 2>/dev/null
    dg_forget_places
    printf 'TAKEN %s %s\n' "$1" "$dg_said"
}

# dg_probe: whether files can be kept here; if not, dg_said says why, in the words of the C locale.
dg_probe() {
    dg_said=$(
        exec 2>&1
        LC_ALL=C
        export LC_ALL
        head -c 1048576 /dev/zero >"room.$$"
    )
    dg_made=$?
    rm -f "room.$$"
    dg_said=$(echo "$dg_said" | tr '\n' ' ')
    return "$dg_made"
}

# dg_forget_places: remove the folders of other pools, and of coordinators that are gone, which hold no attempt. A shell whose folder
# is removed makes it anew.
dg_forget_places() {
    dg_tracker=${dg_root%/*}
    for dg_place in ../../*/*; do
        case $dg_place in "../../${dg_tracker##*/}/${dg_root##*/}") continue ;; esac
        for dg_line in "$dg_place"/*; do
            case $dg_line in "$dg_place/fence" | "$dg_place/*") ;; *) continue 2 ;; esac
        done
        rm -f -- "$dg_place/fence"
        rmdir -- "$dg_place" "${dg_place%/*}"
    done 2>/dev/null
}

# dg_leave_pool: remove the pool's folder if no attempt has one in it.
dg_leave_pool() {
    for dg_key in *-*-*; do
        if [ -d "$dg_key" ]; then return; fi
    done
    rm -f -- fence room.*
    cd / && rmdir -- "$dg_root" "${dg_root%/*}"
}

# dg_room: K if files can be kept here; F if not, and why.
dg_room() {
    # A disk that has failed may have been replaced meanwhile, and this shell is in a folder of the old one.
    { mkdir -p -- "$dg_root" && cd -- "$dg_root"; } 2>/dev/null
    if ! dg_probe; then
        printf 'F %s .\n' "$dg_said"
        return
    fi
    dg_line=
    { read -r dg_line <fence; } 2>/dev/null
    if [ -z "$dg_line" ]; then echo "$dg_fence" >fence; fi
    echo "K ."
}

# dg_here: go to the pool's folder again, because somebody may have made it anew.
dg_here() { cd -- "$dg_root"; }

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
    dg_cut=
    printf "$2" "$3" >"$1/stdin" || dg_cut=$1
}

# dg_go KEY TIMEOUT GRACE ABOUT INPUT WORD...: start an attempt, once. TIMEOUT and GRACE are seconds; TIMEOUT and INPUT (stdin) may be
# empty; the words are those of dg_carry_out. Says H if somebody has started it, and N if it is not started and never will be: with the
# word `room` because this host cannot keep its files, and with `fence` because a newer connection has taken over.
dg_go() {
    [ -d "$1" ] || dg_new "$1" # somebody has removed it
    if ! dg_once "$dg_self" "$1/lock"; then
        if [ -s "$1/lock" ]; then echo "H $1 ."; else echo "N $1 room ."; fi
        return
    fi
    dg_line=
    { read -r dg_line <fence; } 2>/dev/null
    if [ "$dg_line" != "$dg_fence" ] || [ "$1" = "$dg_cut" ]; then
        echo "0 0 -" >"$1/w"
        if [ -n "$dg_line" ] && [ "$1" != "$dg_cut" ]; then echo "N $1 fence ."; else echo "N $1 room ."; fi
        return
    fi
    dg_watch "$@" &
}

# The warden of one attempt.
dg_watch() {
    trap '' HUP PIPE
    dg_take_stops
    dg_birth self
    dg_w=${dg_line%% *}
    if ! { echo "$4" >"$1/about" && echo "0 0" >"$1/pid" && printf '%0600d\n' 0 >"$1/result" && printf '' >"$1/stdout" &&
        printf '' >"$1/stderr" && printf '' >"$1/said" && echo "$dg_w $dg_born $dg_boot" >"$1/w"; }; then
        echo "N $1 room ."
        exit
    fi
    dg_limit=${4%% *}
    dg_key=$1 dg_timeout=$2 dg_grace=$3
    dg_own=$dg_root/$1
    dg_in=${5:+$dg_own/}${5:-/dev/null} dg_out=$dg_own/stdout dg_err=$dg_own/stderr dg_mark=SSH_DAGGYR_FOLDER=$dg_own/
    dg_cause=$dg_own/cause dg_refused=$dg_own/refused dg_said=$dg_own/said dg_times=$dg_own/times
    dg_uptime
    dg_began=$dg_up
    shift 5
    dg_carry_out "$@"
    dg_uptime
    if [ -s "$dg_out" ]; then dg_flags=${dg_flags}o; fi
    if [ -s "$dg_err" ]; then dg_flags=${dg_flags}e; fi
    if [ "$dg_limit" -gt 1048576 ]; then dg_flags=${dg_flags}w; fi
    if [ ! -d "$dg_own" ]; then
        dg_flags=${dg_flags}g
    elif ! { printf '%04096d' 0 >"$dg_own/room" && printf '' >"$dg_own/room"; }; then
        dg_flags=${dg_flags}f
    fi
    if [ "$dg_why" = timeout ]; then dg_why=$dg_why:$dg_timeout; fi
    dg_line="E $dg_key $dg_code $dg_flags ${dg_why:--} - $dg_began $dg_up ${dg_cpu:--}"
    echo "$dg_line $dg_boot ." 1<>"$dg_own/result"
    echo "$dg_line - ."
    exit
}

# The task's process tells of itself.
dg_begun() {
    dg_birth self
    echo "${dg_line%% *} $dg_born" 1<>"$dg_own/pid"
    { echo "S $dg_key $dg_up ."; } 2>/dev/null
}

# -- ending ------------------------------------------------------------------------------------------------------------

# dg_stop KEY...: end attempts that run. Their wardens do it.
dg_stop() {
    for dg_key; do
        if [ -d "$dg_key" ] && [ ! -e "$dg_key/times" ]; then
            dg_once kill "$dg_key/cause"
            dg_tell_warden "$dg_key" >/dev/null </dev/null &
        fi
    done
}

dg_tell_warden() {
    dg_turn=0
    until [ -s "$1/w" ] || [ "$dg_turn" -ge 200 ]; do
        sleep 0.05 || sleep 1 # where there are whole seconds only
        dg_turn=$((dg_turn + 1))
    done
    if dg_alive "$1"; then
        kill -TERM "$dg_w"
        kill -CONT "$dg_w" # a task can have stopped it
    fi
    exit
}

# dg_clear KEY...: end what attempts that have ended left behind.
dg_clear() {
    dg_left=$#
    for dg_key; do set -- "$@" "$dg_root/$dg_key/"; done
    shift "$dg_left"
    dg_sweep "$@"
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
    dg_clear "$@"
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
            { read -r dg_line <"$dg_key/about"; }
            echo "R $dg_key ${dg_line:-0} ."
        elif { read -r dg_line <"$dg_key/result"; } && [ "${dg_line##* }" = . ]; then
            echo "$dg_line"
        elif [ -n "$dg_claim" ] && { { mkdir -p -- "$dg_key" && dg_once "$dg_self" "$dg_key/lock"; } || [ ! -s "$dg_key/lock" ]; }; then
            # Without room for the lock it is sure as well, because whoever makes it later finds another fence than its own.
            echo "A $dg_key ."
        elif { read -r dg_w dg_b <"$dg_key/lock"; } && dg_there "$dg_w" "$dg_b" && [ ! -e "$dg_key/w" ] &&
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

# dg_keep_of NAME SIZE: dg_keep for a stream, as KEY/stdout. Only standard output has a limit of its own.
dg_keep_of() {
    dg_line=
    case $1 in */stdout) { read -r dg_line dg_more <"${1%/*}/about"; } ;; esac
    dg_keep "$2" "${dg_line:-0}"
}

# dg_give NAME...: what is in files, as KEY/stdout, as far as it is kept.
dg_give() {
    wc -c -- "$@" | while read -r dg_size dg_name; do
        case $dg_name in */*) ;; *) continue ;; esac # the sum
        dg_keep_of "$dg_name" "$dg_size"
        echo "O $dg_name $dg_size $dg_head $dg_tail"
        if [ "$dg_cut" -eq 0 ]; then
            base64 "$dg_name"
        else
            { head -c "$dg_head" "$dg_name"; tail -c "+$((dg_size - dg_tail + 1))" "$dg_name" | head -c "$dg_tail"; } | base64
        fi
        echo .
    done
}

# dg_peek NAME OFFSET MOST: the next piece of a file that grows, at most so many bytes, as far as it is kept.
dg_peek() {
    dg_size=$(wc -c <"$1") || dg_size=0
    dg_keep_of "$1" "$dg_size"
    dg_offset=$2 dg_length=$3
    if [ "$dg_offset" -lt "$dg_head" ]; then
        if [ "$dg_length" -gt "$((dg_head - dg_offset))" ]; then dg_length=$((dg_head - dg_offset)); fi
    elif [ "$dg_offset" -lt "$((dg_head + dg_cut))" ]; then
        dg_offset=$((dg_head + dg_cut))
    fi
    if [ "$dg_size" -gt "$dg_offset" ]; then
        echo "P $dg_offset"
        tail -c "+$((dg_offset + 1))" "$1" | head -c "$dg_length" | base64
        echo .
    fi
}

# dg_drop KEY...: the results are durable elsewhere.
dg_drop() { rm -rf -- "$@"; }

# dg_done TICKET: all that was asked before has been answered.
dg_done() { echo "Z $1 ."; }
