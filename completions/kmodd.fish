# fish completion for kmodd, made by `kmodd completion fish`
function __kmodd_command -d 'Whether this is the command; with no argument: whether there is none'
    for word in (commandline -opc)[2..]
        string match -q -- '-*' $word; and continue
        test "$word" = "$argv[1]"
        return
    end
    test (count $argv) -eq 0
end
function __kmodd_live
    cut -d ' ' -f 1 /proc/modules 2>/dev/null
end
function __kmodd_installed
    sed -n 's/:.*//; s/.*\///; s/\.ko.*//p' /lib/modules/(uname -r)/modules.dep 2>/dev/null | tr - _
end
function __kmodd_other -d 'Complete the command line behind ours; the arguments are our options with a value'
    set -l words (commandline -opc)[3..]
    while set -q words[1]; and string match -q -- '-*' $words[1]
        set -l word $words[1]
        set -e words[1]
        test "$word" = --; and break
        contains -- $word $argv; and set -e words[1]
    end
    complete -C (string join ' ' -- (string escape -- $words) (commandline -ct))
end
complete -c kmodd -f
complete -c kmodd -n __kmodd_command -s h -l help -d 'show this help message and exit'
complete -c kmodd -n __kmodd_command -l version -d 'show program'\''s version number and exit'
complete -c kmodd -n __kmodd_command -a serve -d 'run the daemon in the foreground'
complete -c kmodd -n '__kmodd_command serve' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command serve' -l hook -d 'make the kernel send its requests; undone on exit'
complete -c kmodd -n '__kmodd_command serve' -l kernel -x -a 'linux simulated' -d 'which kernel to load in'
complete -c kmodd -n '__kmodd_command serve' -l root -x -a '(__fish_complete_directories)' -d 'where etc, run and var are found'
complete -c kmodd -n __kmodd_command -a request -d 'ask for modules by name or alias'
complete -c kmodd -n '__kmodd_command request' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command request' -l json -d 'print JSON'
complete -c kmodd -n '__kmodd_command request' -l timeout -x -d 'wait at most S seconds; the load goes on'
complete -c kmodd -n '__kmodd_command request' -l no-wait -d 'ask and return at once'
complete -c kmodd -n '__kmodd_command request' -a '(__kmodd_installed)' -d 'NAME'
complete -c kmodd -n __kmodd_command -a remove -d 'unload modules'
complete -c kmodd -n '__kmodd_command remove' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command remove' -l json -d 'print JSON'
complete -c kmodd -n '__kmodd_command remove' -l holders -d 'unload those first that use it'
complete -c kmodd -n '__kmodd_command remove' -a '(__kmodd_live)' -d 'NAME'
complete -c kmodd -n __kmodd_command -a list -d 'list the modules in the kernel'
complete -c kmodd -n '__kmodd_command list' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command list' -l json -d 'print JSON'
complete -c kmodd -n __kmodd_command -a resolve -d 'show what a request would load, in order, and why'
complete -c kmodd -n '__kmodd_command resolve' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command resolve' -l json -d 'print JSON'
complete -c kmodd -n '__kmodd_command resolve' -l release -x -d 'for another kernel release than the running one'
complete -c kmodd -n '__kmodd_command resolve' -l tree -x -a '(__fish_complete_directories)' -d 'in a root directory or a modules directory'
complete -c kmodd -n '__kmodd_command resolve' -l kmod-exact -d 'as kmod does it, where kmodd differs on purpose'
complete -c kmodd -n '__kmodd_command resolve' -a '(__kmodd_installed)' -d 'NAME'
complete -c kmodd -n __kmodd_command -a status -d 'show the daemon, the hook and counts'
complete -c kmodd -n '__kmodd_command status' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command status' -l json -d 'print JSON'
complete -c kmodd -n __kmodd_command -a tune -d 'read or change settings of the running daemon'
complete -c kmodd -n '__kmodd_command tune' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command tune' -l json -d 'print JSON'
complete -c kmodd -n '__kmodd_command tune' -a 'modprobe_path modprobe_args unload_delay load_timeout fallback journal_keep serial tracing kernel.keep_tree stop_timeout' -d 'KEY[=VALUE]'
complete -c kmodd -n __kmodd_command -a hook -d 'point the kernel at kmodd, or put back what was'
complete -c kmodd -n '__kmodd_command hook' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command hook' -l json -d 'print JSON'
complete -c kmodd -n '__kmodd_command hook; and not __fish_seen_subcommand_from on off status' -a 'on off status' -d 'action'
complete -c kmodd -n __kmodd_command -a log -d 'show what happened'
complete -c kmodd -n '__kmodd_command log' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command log' -l json -d 'print JSON'
complete -c kmodd -n '__kmodd_command log' -s f -l follow -d 'go on with what happens next'
complete -c kmodd -n '__kmodd_command log' -l since -x -d 'from then on: 2026-11-23T08:00:00Z, or 90s for 90 s ago'
complete -c kmodd -n '__kmodd_command log' -l module -x -a '(__kmodd_installed)' -d 'what loaded or unloaded a module (a glob)'
complete -c kmodd -n '__kmodd_command log' -l name -x -d 'what asked for a name (a glob)'
complete -c kmodd -n '__kmodd_command log' -l outcome -x -a 'loaded already-live built-in not-found denied failed timed-out deadlock' -d 'what ended so: loaded, not-found, failed ...'
complete -c kmodd -n '__kmodd_command log' -l uid -x -d 'what a user asked for'
complete -c kmodd -n '__kmodd_command log' -s n -l lines -x -d 'the newest N only'
complete -c kmodd -n __kmodd_command -a why -d 'tell what brought a module in'
complete -c kmodd -n '__kmodd_command why' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command why' -l json -d 'print JSON'
complete -c kmodd -n '__kmodd_command why' -a '(__kmodd_live)' -d 'MODULE'
complete -c kmodd -n __kmodd_command -a lab -d 'boot a disposable real kernel with kmodd in charge'
complete -c kmodd -n '__kmodd_command lab' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command lab' -l kernel -x -a 'uml qemu' -d 'User-mode Linux, or QEMU'
complete -c kmodd -n '__kmodd_command lab' -l smp -x -d 'processors (QEMU)'
complete -c kmodd -n '__kmodd_command lab' -l memory -x -d 'memory in MiB'
complete -c kmodd -n '__kmodd_command lab' -l timeout -x -d 'end the kernel after S seconds'
complete -c kmodd -n '__kmodd_command lab' -l release -x -d 'which of several kernels (QEMU)'
complete -c kmodd -n '__kmodd_command lab' -l no-serve -d 'leave kernel.modprobe as it is, start no daemon'
complete -c kmodd -n '__kmodd_command lab' -a '(__kmodd_other --kernel --smp --memory --timeout --release)' -d '[--] CMD'
complete -c kmodd -n __kmodd_command -a completion -d 'print a shell'\''s completion script'
complete -c kmodd -n '__kmodd_command completion' -s h -l help -d 'show this help message and exit'
complete -c kmodd -n '__kmodd_command completion; and not __fish_seen_subcommand_from bash zsh fish' -a 'bash zsh fish' -d 'shell'
complete -c kmodd -n __kmodd_command -a modprobe -d 'insert or remove modules with what they need'
complete -c kmodd -n '__kmodd_command modprobe' -a '(__kmodd_installed)' -d 'NAME'
complete -c kmodd -n __kmodd_command -a insmod -d 'insert the module in a file'
complete -c kmodd -n '__kmodd_command insmod' -a '(__fish_complete_path)' -d 'FILE'
complete -c kmodd -n __kmodd_command -a rmmod -d 'remove modules'
complete -c kmodd -n '__kmodd_command rmmod' -a '(__kmodd_live)' -d 'NAME'
complete -c kmodd -n __kmodd_command -a lsmod -d 'list the modules in the kernel'
complete -c kmodd -n __kmodd_command -a modinfo -d 'show what modules say of themselves'
complete -c kmodd -n '__kmodd_command modinfo' -a '(__kmodd_installed)' -d 'NAME'
