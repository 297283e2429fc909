# What an SSH target has for tasks: a part of the program that script.py sends to each shell there, before remote.sh, which calls dg_host.
# Nothing here starts or ends anything.

# dg_host MEMBERSHIP MOUNT MEMINFO: what this host has for tasks, in dg_cores and dg_memory (kB). These are the rules of
# daggyr/host_resources.py and daggyr/control_group.py.
dg_host() {
    dg_cores=$(
        unset OMP_NUM_THREADS OMP_THREAD_LIMIT # nproc(1) takes these for the number of cores
        nproc
    ) || dg_cores=1
    dg_memory=
    while read -r dg_name dg_line dg_more; do
        case $dg_name in MemTotal:) dg_memory=$dg_line ;; esac
    done <"$3"
    if [ -z "$dg_memory" ]; then dg_memory=$(($(getconf _PHYS_PAGES) * ($(getconf PAGE_SIZE) / 1024))); fi
    while IFS=: read -r dg_name dg_kinds dg_path; do
        case $dg_name:$dg_kinds in
            0:)
                if [ -e "$2/cgroup.controllers" ]; then dg_upwards "$2" "$dg_path"; else dg_upwards "$2/unified" "$dg_path"; fi
                ;;
            *)
                case ,$dg_kinds, in *,cpu,*) dg_upwards "$2/cpu" "$dg_path" ;; esac
                case ,$dg_kinds, in *,memory,*) dg_upwards "$2/memory" "$dg_path" ;; esac
                ;;
        esac
    done <"$1"
}

# dg_upwards ROOT PATH: keep to the limits of a control group and of those above it. In a container the path may be the host's: then
# only the root is there.
dg_upwards() {
    dg_folder=$1/${2#/}
    case $2 in */..*) dg_folder=$1 ;; esac
    if [ ! -d "$dg_folder" ]; then dg_folder=$1; fi
    while :; do
        dg_folder=${dg_folder%/}
        dg_quota= dg_period= dg_more=
        { read -r dg_quota dg_period; } <"$dg_folder/cpu.max" || {
            { read -r dg_quota; } <"$dg_folder/cpu.cfs_quota_us"
            { read -r dg_period; } <"$dg_folder/cpu.cfs_period_us"
        }
        case $dg_quota:$dg_period in
            :* | *: | *[!0-9:]*) ;;
            *)
                dg_quota=$(((dg_quota + dg_period - 1) / dg_period))
                if [ "$dg_quota" -lt 1 ]; then dg_quota=1; fi
                if [ "$dg_quota" -lt "$dg_cores" ]; then dg_cores=$dg_quota; fi
                ;;
        esac
        { read -r dg_more; } <"$dg_folder/memory.max" || { read -r dg_more; } <"$dg_folder/memory.limit_in_bytes"
        case $dg_more in
            '' | *[!0-9]*) ;;
            *) if [ "$((dg_more / 1024))" -lt "$dg_memory" ]; then dg_memory=$((dg_more / 1024)); fi ;;
        esac
        if [ "$dg_folder" = "$1" ]; then break; fi
        dg_folder=${dg_folder%/*}
    done
}

