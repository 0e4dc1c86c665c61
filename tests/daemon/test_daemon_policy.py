"""The policy of a running daemon: its files, its commands, its seal, and whom it lets through the API."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import re
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest

from daemon.daemon_harness import NOBODY, Daemon, Reply, identity, wait_until
from kmodd.broker.judging import DENIED_MAX
from kmodd.cli import policylearn
from kmodd.policy.learn import Denied, Simulated
from kmodd.sources import varlink

DENY_DEP = '[[rule]]\nmodule = "dep"\naction = "deny"\nreason = "CVE-2026-1"\n'


def write(daemon: Daemon, name: str, text: str, directory: str = "etc/kmodd") -> str:
    folder = daemon.root / directory / "policy.d"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(daemon: Daemon, *arguments: str) -> dict[str, Any]:
    (told,) = lines(daemon.kmodd("policy", "check", "--json", *arguments))
    return told


# Denied


def test_a_denied_dependency_denies_the_request(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", DENY_DEP)
    daemon.start()
    done = daemon.kmodd("request", "--json", "alias-top")
    assert done.returncode == 4
    assert done.stderr == "kmodd: cannot load alias-top: denied by 30-x.toml:1: CVE-2026-1\n"
    (result,) = lines(done)
    assert (result["outcome"], result["status"], result["modules"]) == ("denied", -1, [])
    assert result["decision"] == {"action": "deny", "rule": "30-x.toml:1", "mode": "enforce"}
    assert daemon.live() == []
    assert daemon.events(event="load") == []
    with daemon.helper(b"alias-top") as helper:
        assert helper.packets() == [b"s\x01"]
    with daemon.api() as api, pytest.raises(Reply) as raised:
        api.call("RequestModule", name="top")
    assert raised.value.error == "io.kmodd.Denied"
    assert "denied by 30-x.toml:1: CVE-2026-1" in daemon.errors()
    assert daemon.kmodd("request", "plain").returncode == 0
    shown = daemon.kmodd("log", "--outcome", "denied").stdout
    assert re.search(r"\(denied by 30-x\.toml:1\)  \(by \S+ \(pid \d+, uid \d+.*\)\)$", shown, re.MULTILINE)
    assert result["denied_modules"] == ["top", "dep"]


def test_why_a_module_is_not_there(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", DENY_DEP)
    daemon.start()
    for _ in range(3):
        daemon.kmodd("request", "alias-top")
    done = daemon.kmodd("why", "dep", "top")
    assert (done.returncode, done.stderr) == (0, "")
    for module, line in zip(("dep", "top"), done.stdout.splitlines(), strict=True):
        assert re.fullmatch(
            rf"{module} is not in the kernel\. On \w+ \S+ \S+ \S+ \(pid \d+, uid 0, root\) asked for alias-top and was "
            r"denied it by 30-x\.toml:1: CVE-2026-1\. 2 earlier requests for it had been denied, too\.",
            line,
        ), line
    (told,) = lines(daemon.kmodd("why", "--json", "dep"))
    assert (told["denials"], told["denied"]["name"], told["load"]) == (3, "alias-top", None)
    assert [event["outcome"] for event in lines(daemon.kmodd("log", "--json", "--module", "dep"))] == [
        "denied"
    ] * 3
    # Once it has been loaded only what is denied from then on is told.
    write(daemon, "20-y.toml", '[[rule]]\nmodule = "dep"\naction = "allow"\n')
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.kmodd("request", "alias-top").returncode == 0, "it is allowed")
    assert "denied" not in daemon.kmodd("why", "dep").stdout
    assert daemon.kmodd("why", "plain").returncode == 3


def test_many_denials_hide_no_load(make: Callable[..., Daemon]) -> None:
    daemon = make()
    daemon.start()
    daemon.kmodd("request", "alias-top")
    daemon.kmodd("remove", "top", "dep")
    write(daemon, "30-x.toml", DENY_DEP)
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.kmodd("request", "dep").returncode == 4, "it is denied")
    with daemon.api() as api:
        for _ in range(varlink.WHY_MAX + 1):
            with pytest.raises(Reply):
                api.call("RequestModule", name="dep")
    (told,) = lines(daemon.kmodd("why", "--json", "dep"))
    assert told["load"]["name"] == "alias-top"
    assert told["unload"]["module"] == "dep"
    assert told["denials"] == varlink.DENIALS_MAX


def test_a_name_that_stands_for_many_is_told_within_bounds(make: Callable[..., Daemon]) -> None:
    modules = "".join(f'[m{number}]\naliases = ["many"]\n' for number in range(DENIED_MAX + 10))
    daemon = make(modules)
    write(daemon, "30-x.toml", '[[rule]]\nname = "many"\naction = "deny"\n')
    daemon.start()
    (result,) = lines(daemon.kmodd("request", "--json", "many"))
    assert len(result["denied_modules"]) == DENIED_MAX


def test_audit_allows_and_tells(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", 'mode = "audit"\n' + DENY_DEP)
    daemon.start()
    (result,) = lines(daemon.kmodd("request", "--json", "top"))
    assert result["outcome"] == "loaded"
    assert result["decision"] == {"action": "deny", "rule": "30-x.toml:2", "mode": "audit"}
    assert "would be denied" in daemon.kmodd("log", "--name", "top").stdout
    assert "would be denied by 30-x.toml:2: CVE-2026-1" in daemon.errors()


def test_the_mode_of_all_changes_at_once(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", DENY_DEP)
    daemon.start()
    assert daemon.kmodd("policy", "mode").stdout == "enforce\n"
    assert daemon.kmodd("request", "top").returncode == 4
    assert daemon.kmodd("policy", "mode", "audit").returncode == 0
    assert daemon.kmodd("policy", "mode", "--json").stdout == '{"mode": "audit"}\n'
    assert check(daemon, "top")["allowed"] is True
    assert daemon.kmodd("policy", "mode", "off").returncode == 0
    (result,) = lines(daemon.kmodd("request", "--json", "top"))
    assert result["decision"] == {"action": "allow", "rule": None, "mode": None}
    done = daemon.kmodd("policy", "mode", "loud")
    assert (done.returncode, done.stderr) == (
        2,
        "kmodd: the mode is one of enforce, audit, off, not 'loud'\n",
    )


def test_each_requester_of_a_shared_load_is_judged(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", '[[rule]]\nsource = "kernel"\nname = "slow"\naction = "deny"\n')
    daemon.start()
    with daemon.api() as api, daemon.helper(b"slow") as helper:
        api.send("RequestModule", name="slow")
        assert helper.packets() == [b"s\x01"]
        assert api.receive()["result"]["outcome"] == "loaded"
    assert daemon.live() == ["slow"]
    assert [event["outcome"] for event in daemon.events(event="request", source="kernel")] == ["denied"]


def test_a_rate_counts_for_each_user(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", '[[rule]]\nrate = "3/day"\naction = "deny"\nreason = "enough"\n')
    daemon.start()
    statuses = [
        daemon.kmodd("request", name).returncode for name in ("plain", "dep", "outer", "slow", "long")
    ]
    assert statuses == [0, 0, 0, 4, 4]


def test_a_rule_ends(make: Callable[..., Daemon]) -> None:
    daemon = make()
    yesterday = (datetime.now(UTC) - timedelta(days=2)).date()
    tomorrow = (datetime.now(UTC) + timedelta(days=2)).date()
    text = '[[rule]]\nname = "{}"\naction = "deny"\nuntil = {}\n'
    write(daemon, "30-x.toml", text.format("plain", yesterday) + text.format("dep", tomorrow))
    daemon.start()
    assert daemon.kmodd("request", "plain").returncode == 0
    assert daemon.kmodd("request", "dep").returncode == 4


# What check says is what is done


@pytest.mark.parametrize("name", ["plain", "top", "alias-top", "built", "absent", "dep", "outer"])
def test_check_says_what_is_done(make: Callable[..., Daemon], name: str) -> None:
    daemon = make()
    write(
        daemon,
        "30-x.toml",
        '[[rule]]\nmodule = ["pl*", "top"]\naction = "allow"\n[[rule]]\nmodule = "*"\naction = "deny"\n',
    )
    daemon.start()
    told = check(daemon, name, "--source", "cli")
    done = daemon.kmodd("request", "--json", name)
    result = lines(done)[0]
    assert told["decision"] == result["decision"]
    assert told["allowed"] is (result["outcome"] != "denied")
    assert daemon.kmodd("policy", "check", name, "--source", "cli").returncode == (
        0 if told["allowed"] else 4
    )


def test_check_of_others(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(
        daemon,
        "30-x.toml",
        '\n[[rule]]\nprivileged = false\nunknown = true\nname = "pl*"\naction = "deny"\nreason = "users"\n'
        '\n[[rule]]\nexe = "/usr/bin/vi*"\naction = "deny"\nreason = "vi"\n',
    )
    daemon.start()
    told = check(daemon, "plain", "--uid", "1000")
    assert (told["allowed"], told["file"], told["line"], told["reason"]) == (False, "30-x.toml", 2, "users")
    assert told["modules"] == ["plain"]
    assert check(daemon, "plain", "--uid", "1000", "--privileged")["allowed"] is True
    assert check(daemon, "plain", "--unknown")["allowed"] is False
    assert check(daemon, "plain")["allowed"] is True, "whoever runs it: root"
    assert check(daemon, "dep", "--uid", "7", "--exe", "/usr/bin/vim")["line"] == 9
    assert check(daemon, "dep", "--user", "nobody")["requester"]["uid"] == NOBODY
    words = daemon.kmodd("policy", "check", "plain", "--uid", "1000")
    assert words.returncode == 4
    assert words.stdout == "plain: denied by 30-x.toml:2: users; modules: plain\n"
    for arguments in (("--user", "no-such-user"), ("--unknown", "--uid", "1")):
        assert daemon.kmodd("policy", "check", "plain", *arguments).returncode == 2


def test_check_knows_the_groups_of_a_user_by_his_uid(make: Callable[..., Daemon]) -> None:
    user = next(
        entry
        for entry in pwd.getpwall()
        if entry.pw_uid and pwd.getpwuid(entry.pw_uid) == entry and entry.pw_gid != 4711
    )
    (stranger,) = islice((uid for uid in range(40000, 60000) if not _is_user(uid)), 1)
    daemon = make()
    write(daemon, "30-x.toml", f'[[rule]]\nname = "plain"\ngid = {user.pw_gid}\naction = "deny"\n')
    write(daemon, "40-y.toml", '[[rule]]\nname = "dep"\ngid = 4711\nunknown = true\naction = "deny"\n')
    daemon.start()
    uid, gid = str(user.pw_uid), str(user.pw_gid)
    for root in ((), ("--root", str(daemon.root))):
        for arguments, allowed, unknown in (
            (("plain", "--uid", uid), False, False),
            (("dep", "--uid", uid), True, False),
            (("plain", "--user", user.pw_name), False, False),
            (("plain", "--uid", uid, "--gid", "4711"), True, True),
            (("dep", "--uid", uid, "--gid", "4711"), False, True),
            (("plain", "--uid", str(stranger)), True, True),
            (("plain", "--uid", str(stranger), "--gid", gid), False, True),
            (("dep", "--uid", str(stranger)), False, True),
            (("plain",), True, False),
        ):
            told = check(daemon, *arguments, *root)
            assert (told["allowed"], told["groups_unknown"]) == (allowed, unknown), arguments
            done = daemon.kmodd("policy", "check", *arguments, *root)
            assert ("not all groups of the requester are known" in done.stderr) is unknown, arguments
    assert (
        f"kmodd: uid {stranger} is no user here, so"
        in daemon.kmodd("policy", "check", "plain", "top", "--uid", str(stranger)).stderr
    )
    assert daemon.kmodd("policy", "check", "plain", "--unknown").stderr == "", "he is told nothing new"
    told = check(daemon, "plain", "--user", user.pw_name, "--gid", "4711")
    assert told["requester"]["gid"] == 4711
    assert told["allowed"] is False, "it is still among his groups"
    write(daemon, "30-x.toml", "")
    write(daemon, "40-y.toml", "")
    assert daemon.kmodd("policy", "reload").returncode == 0
    done = daemon.kmodd("policy", "check", "plain", "--uid", str(stranger))
    assert (done.returncode, done.stderr) == (0, ""), "no rule looks at groups"


def _is_user(uid: int) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwuid(uid))
    return False


def test_check_of_a_root_without_capabilities(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", '[[rule]]\nprivileged = false\naction = "deny"\n')
    daemon.start()
    assert check(daemon, "plain", "--uid", "0")["allowed"] is True
    told = check(daemon, "plain", "--uid", "0", "--unprivileged", "--container", "c1")
    assert (told["allowed"], told["requester"]["privileged"]) == (False, False)
    assert check(daemon, "plain", "--unprivileged")["allowed"] is False, "whoever runs it, without them"
    for arguments in (("--privileged", "--unprivileged"), ("--unknown", "--unprivileged")):
        done = daemon.kmodd("policy", "check", "plain", *arguments)
        assert (done.returncode, "exclude each other" in done.stderr) == (2, True)


def test_check_says_what_lets_a_stranger_have_nothing(daemon: Daemon) -> None:
    done = daemon.kmodd("policy", "check", "plain", "--uid", str(NOBODY), "--source", "api")
    assert (done.returncode, done.stdout) == (
        4,
        "plain: denied by the policy: no rule lets this user; modules: plain\n",
    )


def test_check_and_show_and_lint_without_a_daemon(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", '[[rule]]\nname = "plain"\nuid = 5\naction = "deny"\n')
    root = str(daemon.root)
    assert check(daemon, "plain", "--uid", "5", "--root", root)["allowed"] is False
    assert check(daemon, "plain", "--uid", "6", "--root", root)["allowed"] is True
    assert "30-x.toml:1  deny  name=plain uid=5" in daemon.kmodd("policy", "show", "--root", root).stdout
    assert daemon.kmodd("policy", "lint", "--root", root).returncode == 0


def test_no_option_of_another_action(make: Callable[..., Daemon]) -> None:
    done = make().kmodd("policy", "show", "--unload")
    assert (done.returncode, done.stderr) == (2, "kmodd: kmodd policy show takes no --unload\n")
    assert make().kmodd("policy", "show", "x").returncode == 2
    assert make().kmodd("policy", "check").returncode == 2


# Files


def test_order_and_masks(make: Callable[..., Daemon]) -> None:
    daemon = make()
    deny = '[[rule]]\nname = "{}"\naction = "deny"\nreason = "{}"\n'
    write(daemon, "50-b.toml", deny.format("plain", "lib"), "usr/lib/kmodd")
    write(daemon, "50-b.toml", deny.format("plain", "run"), "run/kmodd")
    write(daemon, "60-c.toml", deny.format("dep", "lib"), "usr/lib/kmodd")
    write(daemon, "60-c.toml", "", "etc/kmodd")
    write(daemon, "40-a.toml", '[[rule]]\nname = "plain"\nuid = 1\naction = "allow"\n', "usr/lib/kmodd")
    daemon.run_dir.chmod(0o755)
    daemon.start()
    told = daemon.kmodd("policy", "show").stdout.splitlines()
    assert told[0] == "policy: enforce, 2 rules in 3 files"
    assert told[1].startswith("40-a.toml:1  allow")
    assert told[2] == "50-b.toml:1  deny  name=plain  # run"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[rule]]\naction = "maybe"\n', "30-x.toml:1: action must be one of allow, deny, not 'maybe'"),
        ("[[rule]\n", "30-x.toml:1: not TOML"),
        ('\n\n[[rule]]\naction = "deny"\nmodul = "x"\n', "30-x.toml:3: unknown key 'modul'"),
        ('[[rule]]\naction = "deny"\nmodule = "@nope"\n', "30-x.toml:1: module names the group '@nope'"),
    ],
)
def test_a_broken_file_never_replaces_a_good_one(make: Callable[..., Daemon], text: str, words: str) -> None:
    daemon = make()
    write(daemon, "30-x.toml", DENY_DEP)
    daemon.start()
    write(daemon, "30-x.toml", text)
    done = daemon.kmodd("policy", "reload")
    assert done.returncode == 1
    assert words in done.stderr
    assert words in daemon.kmodd("policy", "lint", "--root", str(daemon.root)).stdout.replace(" error:", "")
    assert words in daemon.status()["policy"]["problem"]
    assert daemon.kmodd("request", "top").returncode == 4
    # Nor does a start: the last good one is kept.
    wait_until((daemon.root / "var/lib/kmodd/policy.json").exists, "a copy is kept")
    daemon.stop()
    daemon.start()
    assert daemon.kmodd("request", "top").returncode == 4
    assert "the last good policy is in force" in daemon.status()["policy"]["problem"]
    write(daemon, "30-x.toml", "")
    assert daemon.kmodd("policy", "reload").returncode == 0
    assert daemon.status()["policy"]["problem"] is None
    assert daemon.kmodd("request", "top").returncode == 0


def test_without_a_good_one_it_does_not_start(make: Callable[..., Daemon]) -> None:
    daemon = make()
    path = write(daemon, "30-x.toml", DENY_DEP)
    os.chmod(path, 0o664)
    daemon.spawn()
    assert daemon.wait() == 1
    assert f"{path}: refused: {path} can be changed by others than its owner (mode 0664)" in daemon.errors()


def test_a_file_that_others_can_change_is_refused(make: Callable[..., Daemon]) -> None:
    daemon = make()
    path = write(daemon, "30-x.toml", DENY_DEP)
    daemon.start()
    write(daemon, "20-y.toml", '[[rule]]\naction = "allow"\n')
    other = daemon.root / "etc/kmodd/policy.d/20-y.toml"
    os.chown(other, NOBODY, NOBODY)
    done = daemon.kmodd("policy", "reload")
    assert done.returncode == 1
    assert f"belongs to uid {NOBODY}" in done.stderr
    assert daemon.kmodd("request", "top").returncode == 4
    other.unlink()
    os.chmod(os.path.dirname(path), 0o777)
    assert "can be changed by others" in daemon.kmodd("policy", "reload").stderr
    assert daemon.kmodd("request", "top").returncode == 4


def test_sighup_reads_the_policy_again(make: Callable[..., Daemon]) -> None:
    import signal  # noqa: PLC0415

    daemon = make().start()
    write(daemon, "30-x.toml", DENY_DEP)
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.status()["policy"]["rules"] == 1, "the rule is in force")
    assert daemon.kmodd("request", "top").returncode == 4
    assert [event["action"] for event in daemon.events(event="policy")] == ["reload"]


def test_lint_knows_what_is_installed(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(
        daemon,
        "30-x.toml",
        '[[rule]]\nmodule = "foo"\naction = "deny"\n[[rule]]\nmodule = "fo"\naction = "deny"\n',
    )
    lint = ("policy", "lint", "--root", str(daemon.root))
    assert "nothing wrong" in daemon.kmodd(*lint).stdout, "without a tree nothing is told"
    tree = daemon.root / "lib/modules/6.1.0"
    tree.mkdir(parents=True)
    assert "nothing wrong" in daemon.kmodd(*lint).stdout, "in an empty one, too"
    (tree / "modules.dep").write_text("kernel/foo.ko:\n")
    done = daemon.kmodd(*lint)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "30-x.toml:4: warning: no module is installed that is like 'fo': an alias is denied or allowed by name\n"
    )
    (tree.parent / "6.2.0").mkdir()
    assert "nothing wrong" in daemon.kmodd(*lint).stdout, "nobody can say which"


# By command


def test_deny_and_forget(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", '[[rule]]\naction = "allow"\n')
    daemon.start()
    done = daemon.kmodd("policy", "deny", "dep", "--reason", 'CVE-2026-2 "x"', "--until", "2199-12-31")
    assert (done.returncode, done.stdout, done.stderr) == (0, "dep: denied\n", "")
    done = daemon.kmodd("request", "top")
    assert done.returncode == 4
    assert 'denied by 00-commands.toml:3: CVE-2026-2 "x"' in done.stderr
    assert daemon.kmodd("policy", "allow", "dep").returncode == 0
    assert daemon.kmodd("request", "top").returncode == 0
    assert daemon.kmodd("policy", "forget", "dep").returncode == 0
    assert not (daemon.root / "etc/kmodd/policy.d/00-commands.toml").exists()
    done = daemon.kmodd("policy", "forget", "dep")
    assert done.returncode == 3
    assert daemon.kmodd("policy", "deny", "dep", "--until", "soon").returncode == 2
    assert daemon.kmodd("policy", "deny", "@nope").returncode == 2
    assert daemon.kmodd("policy", "deny", "a b").returncode == 2


def test_a_denial_that_is_over_already_is_refused(daemon: Daemon) -> None:
    yesterday = (datetime.now(UTC) - timedelta(days=2)).date()
    for until in (str(yesterday), f"{yesterday}T10:00", "2020-01-01T00:00:00+00:00"):
        for action in ("deny", "allow"):
            done = daemon.kmodd("policy", action, "dep", "--until", until)
            assert (done.returncode, done.stdout) == (2, "")
            assert f"--until {until!r} is over already" in done.stderr
    assert not (daemon.root / "etc/kmodd/policy.d").exists()
    assert (
        daemon.kmodd("policy", "deny", "dep", "--until", str(datetime.now().astimezone().date())).returncode
        == 0
    )
    assert daemon.kmodd("request", "top").returncode == 4


def test_an_alias_is_denied_by_its_name(daemon: Daemon) -> None:
    done = daemon.kmodd("policy", "deny", "alias_top", "--reason", "CVE-2026-4")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing installed has the name alias_top" in done.stderr
    done = daemon.kmodd("policy", "deny", "alias-top", "--reason", "CVE-2026-3")
    assert (done.returncode, done.stdout) == (0, "alias-top: denied\n")
    assert "alias-top is an alias of top: requests by other names are not denied" in done.stderr
    with daemon.helper(b"alias-top") as helper:
        assert helper.packets() == [b"s\x01"]
    assert "CVE-2026-3" in daemon.kmodd("request", "alias-top").stderr
    assert daemon.live() == []
    assert daemon.kmodd("request", "top").returncode == 0
    assert "top is in the kernel already" in daemon.kmodd("policy", "deny", "alias-top").stderr
    assert daemon.kmodd("policy", "forget", "alias-top").returncode == 0
    assert daemon.kmodd("request", "alias-top").returncode == 0
    assert daemon.kmodd("policy", "allow", "alias-top").returncode == 0
    assert check(daemon, "alias-top")["decision"]["rule"] == "00-commands.toml:3"


def test_a_module_that_is_not_installed_is_denied_once_it_is(daemon: Daemon) -> None:
    done = daemon.kmodd("policy", "deny", "absent")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing installed has the name absent: the rule in" in done.stderr
    assert 'module = "absent"' in (daemon.root / "etc/kmodd/policy.d/00-commands.toml").read_text()
    done = daemon.kmodd("policy", "deny", "@filesystems")
    assert (done.returncode, done.stdout, done.stderr) == (0, "@filesystems: denied\n", "")


@pytest.mark.parametrize("mode", ["audit", "off"])
def test_nothing_is_called_denied_where_the_policy_only_tells(daemon: Daemon, mode: str) -> None:
    assert daemon.kmodd("policy", "mode", mode).returncode == 0
    done = daemon.kmodd("policy", "deny", "dep", "alias-top", "absent")
    assert (done.returncode, done.stdout) == (1, "")
    for word, line in zip(("dep", "alias-top", "absent"), done.stderr.splitlines(), strict=True):
        assert line.startswith(f"kmodd: the rule for {word} is in ")
        assert f"does not deny it: the policy's mode is {mode}; `kmodd policy mode enforce`" in line
    assert daemon.kmodd("policy", "mode", "enforce").returncode == 0
    assert daemon.kmodd("request", "top").returncode == 4


@pytest.mark.parametrize(
    ("rule", "word", "stands"),
    [
        ('module = "dep"', "dep", False),
        ('module = "d*"\nuid = 1000', "dep", False),
        ('module = "d*"\nuid = 1000', "d*", False),
        ('module = "dep"\nuid = 1000', "d?p", False),
        ("uid = 1000", "dep", False),
        ("uid = 1000", "@filesystems", False),
        ('module = "xfs"\nuid = 1000', "@filesystems", False),
        ('name = "top"', "dep", False),
        ('name = "to*"', "dep", False),
        ('name = "alias_top"', "alias-top", False),
        ('module = "top"\nexe = "/bin/x"', "alias-top", False),
        ('name = "plain"', "dep", True),
        ('name = "plain"', "alias-top", True),
        ('module = "top"', "dep", True),
        ('module = "plain"', "alias-top", True),
        ('module = "plain"', "@filesystems", True),
        ('module = "dep"\nmode = "audit"', "dep", True),
        ('module = "dep"\noperation = "remove"', "dep", True),
        ('module = "dep"\nuntil = 2020-01-01', "dep", True),
    ],
)
def test_a_rule_that_comes_before_a_denial_is_told(
    make: Callable[..., Daemon], rule: str, word: str, stands: bool
) -> None:
    daemon = make()
    write(daemon, "00-a.toml", f'[[rule]]\naction = "deny"\nuid = 3\n[[rule]]\n{rule}\naction = "allow"\n')
    daemon.start()
    done = daemon.kmodd("policy", "deny", word)
    if stands:
        assert (done.returncode, done.stdout) == (0, f"{word}: denied\n")
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "does not deny it: 00-a.toml:4 comes first and may allow it" in done.stderr


def test_no_file_masks_commands_that_a_boot_ends(daemon: Daemon) -> None:
    assert daemon.kmodd("policy", "deny", "plain").returncode == 0
    done = daemon.kmodd("policy", "deny", "dep", "--runtime")
    assert (done.returncode, done.stdout, done.stderr) == (0, "dep: denied\n", "")
    assert [daemon.kmodd("request", name).returncode for name in ("plain", "top")] == [4, 4]
    written = daemon.root / "run/kmodd/policy.d/00-commands-runtime.toml"
    assert "dep" in written.read_text()
    assert daemon.kmodd("policy", "forget", "dep", "--runtime").returncode == 0
    assert not written.exists()
    assert daemon.kmodd("request", "top").returncode == 0
    # Where somebody masks that one, too, it is told.
    write(daemon, written.name, "")
    done = daemon.kmodd("policy", "deny", "dep", "--runtime")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not deny it: 00-commands-runtime.toml is not in force" in done.stderr


def test_a_denial_overrules_an_allowance_until_the_next_boot(daemon: Daemon) -> None:
    assert daemon.kmodd("policy", "allow", "dep", "plain", "--runtime").returncode == 0
    written = daemon.root / "run/kmodd/policy.d/00-commands-runtime.toml"
    before = written.read_text()
    write(daemon, "99-broken.toml", "x = 1\n")
    assert daemon.kmodd("policy", "deny", "dep").returncode == 1
    assert written.read_text() == before, "what the daemon has not taken is taken back"
    write(daemon, "99-broken.toml", "")
    done = daemon.kmodd("policy", "deny", "dep")
    assert (done.returncode, done.stdout, done.stderr) == (0, "dep: denied\n", "")
    assert daemon.kmodd("request", "top").returncode == 4
    assert 'module = "plain"' in written.read_text()
    assert daemon.kmodd("policy", "allow", "dep", "--runtime").returncode == 0
    assert daemon.kmodd("request", "top").returncode == 0
    done = daemon.kmodd("policy", "deny", "d*")
    assert "00-commands-runtime.toml:3 comes first and may allow it" in done.stderr
    assert done.returncode == 1


def test_deny_tells_what_is_live_and_unloads_it(daemon: Daemon) -> None:
    assert daemon.kmodd("request", "top", "stuck").returncode == 0
    done = daemon.kmodd("policy", "deny", "top", "--runtime")
    assert "top is in the kernel already: --unload unloads it" in done.stderr
    done = daemon.kmodd("policy", "deny", "top", "stuck", "--unload")
    assert done.stdout.splitlines() == ["top: denied", "top: unloaded", "stuck: denied"]
    assert "kmodd: stuck stays denied, but is still in the kernel: cannot unload stuck" in done.stderr
    assert done.returncode == 1
    assert daemon.live() == ["dep", "stuck"]
    assert daemon.kmodd("request", "stuck").returncode == 4
    done = daemon.kmodd("policy", "deny", "stuck", "dep", "--unload")
    assert done.returncode == 1, "the first failure's, though the last one went"
    assert daemon.live() == ["stuck"]


def test_what_needs_others_is_unloaded_before_them(daemon: Daemon) -> None:
    assert daemon.kmodd("request", "top", "plain").returncode == 0
    done = daemon.kmodd("policy", "deny", "[dt]?p", "--unload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[dt]?p: denied", "top: unloaded", "dep: unloaded"]
    assert daemon.live() == ["plain"]
    done = daemon.kmodd("policy", "deny", "dep", "--unload")
    assert (done.returncode, done.stdout, done.stderr) == (0, "dep: denied\n", ""), (
        "there is nothing to unload"
    )


def test_what_is_built_in_stays_there(daemon: Daemon) -> None:
    done = daemon.kmodd("policy", "deny", "built")
    assert (done.returncode, done.stdout) == (0, "built: denied\n")
    assert done.stderr.startswith("kmodd: built: part of the kernel image")
    assert daemon.kmodd("policy", "deny", "built", "--unload").returncode == 1


def test_an_unloading_is_not_called_a_denial(daemon: Daemon) -> None:
    assert daemon.kmodd("request", "plain", "stuck").returncode == 0
    assert daemon.kmodd("policy", "mode", "audit").returncode == 0
    done = daemon.kmodd("policy", "deny", "plain", "stuck", "--unload")
    assert (done.returncode, done.stdout) == (1, "plain: unloaded\n")
    assert "kmodd: stuck is still in the kernel: cannot unload stuck" in done.stderr


def test_a_denial_stops_requests_in_flight(make: Callable[..., Daemon]) -> None:
    """The dependency is being loaded when the module is denied: that one never comes in."""
    daemon = make(
        "[first]\nlatency = 3600\n[second]\ndepends = ['first']\n[third]\nlatency = 0.5\n"
        "[fourth]\ndepends = ['third']\n"
    ).start()
    with daemon.helper(b"second") as one, daemon.helper(b"fourth") as two, daemon.api() as api:
        assert one.packet() == b"a"
        assert two.packet() == b"a"
        api.send("RequestModule", name="fourth")
        wait_until(lambda: daemon.status()["requests"]["waiting"] == 3, "all wait")
        assert daemon.kmodd("policy", "deny", "second", "fourth").returncode == 0
        assert one.packets() == [b"s\x01"]
        assert two.packets() == [b"s\x01"]
        with pytest.raises(Reply) as raised:
            api.receive()
        assert raised.value.error == "io.kmodd.Denied"
    wait_until(lambda: daemon.status()["loads"]["running"] == 1, "the load of fourth has ended")
    assert "fourth" not in daemon.live()
    (load,) = daemon.events(event="load")
    assert (load["name"], load["outcome"], load["modules"]) == ("fourth", "denied", ["third"])
    # What had come in by then came for that request, and is told so.
    third, fourth = daemon.kmodd("why", "third", "fourth").stdout.splitlines()
    assert third.startswith("third was loaded on ")
    assert third.endswith(" asked for fourth; fourth needs it.")
    assert fourth.startswith("fourth is not in the kernel. On ")
    assert "asked for fourth and was denied it by " in fourth


def test_commands_where_no_daemon_runs_or_takes_them(make: Callable[..., Daemon]) -> None:
    daemon = make().start()
    path = daemon.root / "etc/kmodd/policy.d/00-commands.toml"
    assert daemon.kmodd("policy", "deny", "dep").returncode == 0
    before = path.read_text()
    write(daemon, "99-broken.toml", "x = 1\n")
    done = daemon.kmodd("policy", "deny", "plain")
    assert done.returncode == 1
    assert "99-broken.toml: unknown key 'x'" in done.stderr
    assert path.read_text() == before, "what the daemon has not taken is taken back"
    path.write_text("mine = 1\n")
    path.write_text("[[rule]]\nuid = 3\naction = 'deny'\n")
    done = daemon.kmodd("policy", "deny", "plain")
    assert done.returncode == 1
    assert "correct it or remove it" in done.stderr


# The seal


def test_the_seal_lets_in_what_is_listed_and_outlives_the_daemon(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", '[[rule]]\nmodule = "top"\naction = "allow"\n')
    daemon.start()
    assert daemon.kmodd("request", "plain").returncode == 0
    assert daemon.kmodd("seal").returncode == 0
    for _turn in range(2):
        done = daemon.kmodd("request", "slow")
        assert done.returncode == 4
        assert "denied by the seal: no rule of the policy lists it" in done.stderr
        assert daemon.kmodd("request", "top").returncode == 0, "listed, with what it needs"
        assert daemon.kmodd("request", "plain" if _turn == 0 else "built").returncode == 0, "nothing new"
        assert daemon.kmodd("request", "absent").returncode == 3
        assert daemon.status()["policy"]["sealed"] is True
        daemon.kill_and_start() if _turn == 0 else None
    assert daemon.kmodd("unseal").returncode == 0
    assert daemon.kmodd("request", "slow").returncode == 0
    assert daemon.events(event="policy")[-1]["action"] == "unseal"


def test_only_root_seals(daemon: Daemon) -> None:
    for command in (
        ("seal",),
        ("unseal",),
        ("policy", "reload"),
        ("policy", "mode", "off"),
        ("policy", "show"),
    ):
        assert daemon.kmodd(*command, uid=NOBODY).returncode == 77, command
    assert daemon.kmodd("seal", "--hard", "--yes", uid=NOBODY).returncode == 77
    assert daemon.status()["policy"]["sealed"] is False


def test_what_the_kernel_has_not_done_is_not_recorded(daemon: Daemon) -> None:
    """kernel.modules_disabled of this machine is not set; or it could not run the other tests."""
    for sealed, words in ((True, "is not set"), (False, "cannot unset")):
        with daemon.api() as api, pytest.raises(Reply) as raised:
            api.call("Seal", sealed=sealed, hard=True)
        assert raised.value.parameters["key"] == "hard"
        assert words in raised.value.parameters["error"]
    assert daemon.status()["policy"]["sealed"] is False
    assert daemon.status()["kernel"]["modules_disabled"] is False
    assert "seal --hard" not in [event["action"] for event in daemon.events(event="policy")]


# Through the API


@pytest.mark.parametrize(
    ("rule", "may"),
    [
        ('action = "allow"', False),
        ('name = "plain"\naction = "allow"', False),
        ('source = "kernel"\naction = "allow"', False),
        ('privileged = false\naction = "allow"', False),
        (f'uid = {NOBODY}\naction = "allow"', True),
        ('uid = [0, "65000-65535"]\nmodule = "plain"\naction = "allow"', True),
        ('user = "nobody"\naction = "allow"', True),
        (f'gid = {NOBODY}\naction = "allow"', True),
        ('source = ["api", "cli"]\nname = "plain"\naction = "allow"', True),
        (f'uid = {NOBODY}\nmodule = "dep"\naction = "allow"', False),
        (f'uid = {NOBODY}\nmode = "audit"\naction = "allow"', False),
        (f'uid = {NOBODY}\noperation = "remove"\naction = "allow"', False),
        (f'uid = {NOBODY}\nexe = "/**"\naction = "allow"', False),
    ],
)
def test_whom_a_rule_lets(make: Callable[..., Daemon], rule: str, may: bool) -> None:
    daemon = make()
    write(daemon, "30-x.toml", f"[[rule]]\n{rule}\n")
    daemon.start()
    done = daemon.kmodd("request", "plain", uid=NOBODY)
    assert done.returncode == (0 if may else 77), done.stderr
    assert daemon.live() == (["plain"] if may else [])
    assert daemon.kmodd("remove", "plain", uid=NOBODY).returncode == (3 if "remove" in rule else 77)
    assert daemon.kmodd("tune", "load_timeout=1", uid=NOBODY).returncode == 77


def test_operations(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(
        daemon,
        "30-x.toml",
        f'[[rule]]\nuid = {NOBODY}\noperation = "remove"\nmodule = "plain"\naction = "allow"\n'
        f'[[rule]]\nuid = {NOBODY}\noperation = "set"\nname = "load_timeout"\naction = "allow"\n'
        '[[rule]]\noperation = "remove"\nmodule = "dep"\naction = "deny"\nreason = "stays"\n',
    )
    daemon.start()
    assert daemon.kmodd("request", "plain", "top").returncode == 0
    assert daemon.kmodd("remove", "top", uid=NOBODY).returncode == 77
    assert daemon.kmodd("remove", "plain", uid=NOBODY).returncode == 0
    assert daemon.kmodd("tune", "load_timeout=1", uid=NOBODY).returncode == 0
    assert daemon.kmodd("tune", "stop_timeout=1", uid=NOBODY).returncode == 77
    done = daemon.kmodd("remove", "dep", "--holders")
    assert (done.returncode, done.stderr) == (4, "kmodd: cannot remove dep: denied by 30-x.toml:11: stays\n")
    assert daemon.live() == ["dep", "top"], "none has gone before all were looked at"


def test_a_stranger_shares_no_right_by_sharing_a_load(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", f'[[rule]]\nuid = {NOBODY}\nmodule = "plain"\naction = "allow"\n')
    daemon.start()
    with daemon.api() as root:
        root.send("RequestModule", name="slow")
        wait_until(lambda: daemon.status()["requests"]["waiting"] == 1, "it loads")
        with identity(NOBODY):
            stranger = daemon.api()
        with stranger, pytest.raises(Reply) as raised:
            stranger.call("RequestModule", name="slow")
        assert raised.value.error == "io.kmodd.NotPermitted"
        assert root.receive()["result"]["outcome"] == "loaded"


def test_others_may_ask_what_holds_for_themselves(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", f'[[rule]]\nuid = {NOBODY}\nname = "plain"\naction = "deny"\n')
    daemon.start()
    done = daemon.kmodd("policy", "check", "plain", uid=NOBODY)
    assert (done.returncode, done.stdout.split(";")[0]) == (4, "plain: denied by 30-x.toml:1")
    assert daemon.kmodd("policy", "check", "plain", "--uid", "0", uid=NOBODY).returncode == 77
    with identity(NOBODY):
        api = daemon.api()
    with api:
        for parameters, error in (
            ({"name": "plain"}, "NotPermitted"),
            ({"name": "plain", "uid": NOBODY, "groups": [1] * 257}, "InvalidSetting"),
            ({"name": "x" * 513, "uid": NOBODY}, "InvalidName"),
        ):
            with pytest.raises(Reply) as raised:
                api.call("CheckPolicy", **parameters)
            assert raised.value.error == f"io.kmodd.{error}"
        with pytest.raises(Reply) as raised:
            api.call("Resolve", name="of:N" + "C*" * 300)
        assert raised.value.error == "io.kmodd.InvalidName"


def test_no_rule_makes_root_of_anybody(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", f'[[rule]]\nuid = {NOBODY}\noperation = "set"\naction = "allow"\n')
    daemon.start()
    assert daemon.kmodd("tune", "load_timeout=1", uid=NOBODY).returncode == 0
    for setting in ("modprobe_path=/tmp/mine", 'modprobe_args=["x"]', "policy.mode=off"):
        assert daemon.kmodd("tune", setting, uid=NOBODY).returncode == 77


def test_two_denials_at_once_both_hold(daemon: Daemon) -> None:
    started = [daemon.begin("policy", "deny", name) for name in ("plain", "dep", "slow", "outer")]
    for process in started:
        assert process.wait(60) == 0
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    for name in ("plain", "dep", "slow", "outer"):
        assert daemon.kmodd("request", name).returncode == 4


# Learning


def test_learn_allows_what_was_used(make: Callable[..., Daemon]) -> None:
    daemon = make().start()
    assert daemon.kmodd("request", "top", "plain").returncode == 0
    daemon.kmodd("request", "absent")
    done = daemon.kmodd("policy", "learn")
    assert done.returncode == 0
    assert "of 3 requests" in done.stderr
    assert "this would deny 0" in done.stderr
    assert daemon.kmodd("policy", "learn", "--write").returncode == 0
    assert daemon.kmodd("remove", "top", "dep", "plain").returncode == 0
    assert daemon.kmodd("request", "top", "plain").returncode == 0
    assert daemon.kmodd("request", "slow").returncode == 4
    assert daemon.kmodd("request", "absent").returncode == 3
    done = daemon.kmodd("policy", "learn", "--diff", "--since", "0s")
    assert done.returncode == 0
    assert '-reason = "learned"' in done.stdout
    assert '+    "dep", "plain", "top",' in done.stdout


def test_what_would_be_denied_is_said(make: Callable[..., Daemon]) -> None:
    daemon = make()
    write(daemon, "30-x.toml", DENY_DEP)
    daemon.start()
    daemon.kmodd("request", "top", "plain")
    done = daemon.kmodd("policy", "learn")
    # What is denied teaches nothing, and so it stays denied.
    first, second = done.stderr.splitlines()
    assert first == (
        "kmodd: of 2 requests in less than 2 minutes this would deny 1, of which the policy in force denies 1 "
        "already:"
    )
    assert re.fullmatch(r"    1 x top  uid 0  \S+  30-x\.toml:1: CVE-2026-1, as now", second), second


def test_all_of_the_journal_and_all_files_are_simulated_whatever_is_learned_from(
    make: Callable[..., Daemon],
) -> None:
    daemon = make()
    write(daemon, "20-first.toml", '[[rule]]\nmodule = "plain"\naction = "allow"\n')
    daemon.start()
    assert daemon.kmodd("request", "top", "plain", "top", "slow").returncode == 0
    # Read after the learned file, it denies nothing that that one allows.
    write(daemon, "60-last.toml", '[[rule]]\nmodule = "top"\naction = "deny"\n')
    assert daemon.kmodd("policy", "reload").returncode == 0
    done = daemon.kmodd("policy", "learn")
    assert "of 4 requests in less than 2 minutes this would deny 0\n" in done.stderr
    # Nothing is learned: what a file before it allows is allowed, and the rest is denied, some of it anew.
    said = daemon.kmodd("policy", "learn", "--since", "0s", "--write").stderr.splitlines()
    assert said[0].endswith(
        "of 4 requests in less than 2 minutes this would deny 3, of which the policy in force denies 2 already:"
    )
    assert [line.split("  ")[2] for line in said[1:3]] == ["1 x slow", "2 x top"]
    assert not said[1].endswith(", as now")
    assert said[2].endswith(", as now")
    # And now that one is replaced by what is learned of everything: it is not there twice.
    done = daemon.kmodd("policy", "learn")
    assert "this would deny 0\n" in done.stderr


def test_what_a_stranger_has_chosen_writes_no_line_of_what_is_said() -> None:
    kind = Denied(False, "a\n  1 x b", 1000, "/tmp/x  50-y.toml:1\n", "z.toml:1: a\x1b[2J")
    text = io.StringIO()
    now = datetime(2026, 11, 23, tzinfo=UTC)
    with contextlib.redirect_stderr(text):
        policylearn._say_simulated(Simulated(412, 25, 0, {kind: 2}), now - timedelta(days=30), now)
    assert text.getvalue().splitlines() == [
        "kmodd: of 412 requests in 30 days this would deny 25:",
        "    2 x a\\x0a\\x20\\x201\\x20x\\x20b  uid 1000  /tmp/x\\x20\\x2050-y.toml:1\\x0a  z.toml:1: a\\x1b[2J",
        "    and 23 more",
    ]


def test_what_is_said_of_very_much_is_bounded() -> None:
    kinds = {Denied(True, f"m{number}", None, None, "x:1"): number for number in range(1, 101)}
    text = io.StringIO()
    now = datetime(2026, 11, 23, tzinfo=UTC)
    with contextlib.redirect_stderr(text):
        policylearn._say_simulated(Simulated(6000, 5050, 5050, kinds), now - timedelta(hours=7), now)
    first, *rows, last = text.getvalue().splitlines()
    assert "of 6000 requests in 7 hours this would deny 5050, of which" in first
    assert rows[0] == "    100 x m100  uid -  -  x:1, as now"
    assert (len(rows), last) == (20, f"    and {5050 - sum(range(81, 101))} more")


# What ships with kmodd


@pytest.mark.parametrize("preset", ["modharden", "server", "desktop", "audit"])
def test_presets_are_taken(make: Callable[..., Daemon], preset: str) -> None:
    daemon = make()
    done = daemon.kmodd("policy", "preset", preset)
    assert done.returncode == 0
    write(daemon, f"50-{preset}.toml", done.stdout)
    lint = daemon.kmodd("policy", "lint", "--root", str(daemon.root))
    assert (lint.returncode, "warning" in lint.stdout) == (0, False), lint.stdout
    daemon.start()
    assert daemon.status()["policy"]["rules"] > 0
    assert f"{preset}: " in daemon.kmodd("policy", "preset").stdout
    assert daemon.kmodd("policy", "preset", "nope").returncode == 3


def test_groups_are_shown(daemon: Daemon) -> None:
    done = daemon.kmodd("policy", "groups")
    for name in ("@net-protocols", "@filesystems", "@crypto-user-api", "@never-on-servers"):
        assert f"{name}: " in done.stdout
    (group,) = lines(daemon.kmodd("policy", "groups", "--json", "@filesystems"))
    assert "xfs" in group["modules"]
    assert daemon.kmodd("policy", "groups", "nope").returncode == 3
