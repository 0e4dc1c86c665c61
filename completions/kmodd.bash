# bash completion for kmodd, made by `kmodd completion bash`
_kmodd_words() {
    local word
    while read -r word; do
        [[ $word != "$cur"* ]] || COMPREPLY+=("$word")
    done < <(printf '%s\n' "$@")
}
_kmodd_live() { _kmodd_words "$(cut -d ' ' -f 1 /proc/modules 2>/dev/null)"; }
_kmodd_installed() { _kmodd_words "$(sed -n 's/:.*//; s/.*\///; s/\.ko.*//p' "/lib/modules/$(uname -r)/modules.dep" 2>/dev/null | tr - _)"; }
_kmodd_directory() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$cur"); }
_kmodd_file() { compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); }
_kmodd_setting() { compopt -o nospace; _kmodd_words "$@"; }
_kmodd_command() {
    compopt -o filenames
    if ((first == COMP_CWORD)); then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}
_kmodd() {
    local cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command='' valued='' word i first=0 count=0
    local -a options=()
    COMPREPLY=()
    # `--option=value` and `key=value` come as three words
    if [[ $cur == = ]]; then
        cur=''
        [[ $before == -* ]] || return
    elif [[ $before == = ]] && ((COMP_CWORD > 1)); then
        before=${COMP_WORDS[COMP_CWORD - 2]}
        [[ $before == -* ]] || return
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -* ]] || { command=${COMP_WORDS[i]}; break; }
    done
    case $command in
    '') _kmodd_words -h --help --version serve request remove list autoclean resolve status tune hook log why policy seal unseal exposure lab completion modprobe insmod rmmod lsmod modinfo; return ;;
    serve) options=(-h --help --hook --kernel --root) valued=' --kernel --root ' ;;
    request) options=(-h --help --json --timeout --no-wait) valued=' --timeout ' ;;
    remove) options=(-h --help --json --holders) valued='  ' ;;
    list) options=(-h --help --json) valued='  ' ;;
    autoclean) options=(-h --help --json --dry-run --now) valued='  ' ;;
    resolve) options=(-h --help --json --release --tree --kmod-exact) valued=' --release --tree ' ;;
    status) options=(-h --help --json) valued='  ' ;;
    tune) options=(-h --help --json) valued='  ' ;;
    hook) options=(-h --help --json) valued='  ' ;;
    log) options=(-h --help --json -f --follow --since --module --name --outcome --uid -n --lines) valued=' --since --module --name --outcome --uid -n --lines ' ;;
    why) options=(-h --help --json) valued='  ' ;;
    policy) options=(-h --help --json --uid --gid --user --exe --unit --container --privileged --unprivileged --call-site --source --unknown --root --since --diff --write --reason --until --unload --runtime --modprobe-d) valued=' --uid --gid --user --exe --unit --container --call-site --source --root --since --reason --until ' ;;
    seal) options=(-h --help --hard --yes) valued='  ' ;;
    unseal) options=(-h --help) valued='  ' ;;
    exposure) options=(-h --help --json --root --list) valued=' --root ' ;;
    lab) options=(-h --help --kernel --smp --memory --timeout --release --no-serve) valued=' --kernel --smp --memory --timeout --release ' ;;
    completion) options=(-h --help) valued='  ' ;;
    modprobe) options=() valued='  ' ;;
    insmod) options=() valued='  ' ;;
    rmmod) options=() valued='  ' ;;
    lsmod) options=() valued='  ' ;;
    modinfo) options=() valued='  ' ;;
    *) return ;;
    esac
    # the arguments of the command that stand before this word
    for ((i++; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == -- ]]; then
            first=$((i + 1))
            break
        elif [[ $valued == *" $word "* ]]; then
            [[ ${COMP_WORDS[i + 1]} == = ]] && ((i++))
            ((i++))
        elif [[ $word != -* ]]; then
            ((count++ || (first = i)))
        fi
    done
    ((first)) || first=$COMP_CWORD
    case $command,$before in
    serve,--kernel) _kmodd_words linux simulated; return ;;
    serve,--root) _kmodd_directory; return ;;
    request,--timeout)  return ;;
    resolve,--release)  return ;;
    resolve,--tree) _kmodd_directory; return ;;
    log,--since)  return ;;
    log,--module) _kmodd_installed; return ;;
    log,--name)  return ;;
    log,--outcome) _kmodd_words loaded already-live built-in not-found denied failed timed-out deadlock; return ;;
    log,--uid)  return ;;
    log,-n | log,--lines)  return ;;
    policy,--uid)  return ;;
    policy,--gid)  return ;;
    policy,--user)  return ;;
    policy,--exe)  return ;;
    policy,--unit)  return ;;
    policy,--container)  return ;;
    policy,--call-site)  return ;;
    policy,--source) _kmodd_words kernel api cli uevent boot; return ;;
    policy,--root)  return ;;
    policy,--since)  return ;;
    policy,--reason)  return ;;
    policy,--until)  return ;;
    exposure,--root)  return ;;
    lab,--kernel) _kmodd_words uml qemu; return ;;
    lab,--smp)  return ;;
    lab,--memory)  return ;;
    lab,--timeout)  return ;;
    lab,--release)  return ;;
    esac
    if [[ $cur == -* ]] && ! [[ $command == @(lab) && $first -lt $COMP_CWORD ]]; then
        _kmodd_words "${options[@]}"
        return
    fi
    case $command in
    request) _kmodd_installed ;;
    remove) _kmodd_live ;;
    resolve) _kmodd_installed ;;
    tune) _kmodd_setting modprobe_path modprobe_args unload_delay unload_delays keep load_timeout fallback journal journal_keep serial tracing kernel.keep_tree policy.mode stop_timeout ;;
    hook) ((count)) || _kmodd_words on off status ;;
    why) _kmodd_live ;;
    policy) ((count)) || _kmodd_words show check lint reload mode deny allow forget learn groups preset export ;;
    lab) _kmodd_command ;;
    completion) ((count)) || _kmodd_words bash zsh fish ;;
    modprobe) _kmodd_installed ;;
    insmod) _kmodd_file ;;
    rmmod) _kmodd_live ;;
    modinfo) _kmodd_installed ;;
    esac
}
complete -F _kmodd kmodd
