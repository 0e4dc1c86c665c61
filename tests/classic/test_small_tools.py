"""lsmod, rmmod, insmod and modinfo beside kmod's own: output, messages and exit statuses.

Where both see what really is there the tool is called in this process. Where a kernel's answer is needed
both run as programs, with fakeroot.c preloaded.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kmodd import __version__
from kmodd.cli.classic import lsmod
from support.images import compressed_modules, image, real_modules, signed, small_modules, trees
from support.tools import Done, ours

HERE = Path(__file__).parent
SBIN = Path("/sbin")
INFO = (
    b"license=GPL\0\0\0alias=a=b\0noequals\0=novalue\0empty=\0averyveryverylongkeyname=x\0fourteenlongss=1\0"
    b"fifteenlongssss=1\0sixteenlongsssss=2\0parm=foo:first\0parmtype=foo:int\0parmtype=bar:charp\0"
    b"parm=baz:only a text\0parm=nocolon\0parmtype=nocolon\0author=\xe9\xff z\0description=line\nbreak\0"
    b"parm=foo:second\0parmtype=dup:int\0parmtype=dup:uint\0name=hello\0multi=1\0multi=2\0filename=evil\0"
    b"parm=:x\0parmtype=:int\0parm=\0parmtype\0parm=a:b:c\0parmtype=a:b:c\0parm=e1:\0parmtype=e1:int\0parm=e2:\0"
    b"parmtype=e3:\0parm=e4:x\0parmtype=e4:\0unterminated=1"
)


def theirs(tool: str, arguments: list[str], **environment: str) -> Done:
    """Run kmod's; what its library says of its own insides is left out."""
    if not (SBIN / tool).exists():
        pytest.skip(f"kmod's {tool} is not installed")
    done = subprocess.run(
        [tool, *arguments],
        executable=str(SBIN / tool),
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )
    lines = done.stderr.splitlines(keepends=True)
    return done.returncode, done.stdout, b"".join(line for line in lines if b"libkmod/" not in line)


def check_same(tool: str, arguments: list[str]) -> Done:
    found = ours(tool, arguments)
    assert found == theirs(tool, arguments)
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Options


@pytest.mark.parametrize(
    "line",
    [
        "lsmod -x", "lsmod x", "lsmod --help", "lsmod --version",
        "rmmod", "rmmod -h", "rmmod --he", "rmmod -Z", "rmmod --bogus", "rmmod --bogus=3", "rmmod --v", "rmmod --ver=3",
        "rmmod --force=3 a", "rmmod --=", "rmmod --=x", "rmmod a -Z", "rmmod -fvZ", "rmmod -h -Z", "rmmod -Z -h",
        "insmod", "insmod -h", "insmod -Z", "insmod -q x", "insmod --bogus", "insmod --version=3", "insmod --h",
        "insmod -ps", "insmod -", "insmod x --help", "insmod -sfx x",
        "modinfo", "modinfo -h", "modinfo -Z", "modinfo --bogus", "modinfo -F", "modinfo -b", "modinfo -k", "modinfo --field",
        "modinfo --fi", "modinfo --fi=x", "modinfo x -Z", "modinfo -F x", "modinfo -0Z x", "modinfo --basedir",
        "modinfo -- -x", "modinfo --null=1 x", "modinfo -h -Z", "modinfo -nFx",
    ],
)  # fmt: skip
def test_options(line):
    tool, *arguments = line.split()
    check_same(tool, arguments)


@pytest.mark.parametrize("tool", ["rmmod", "insmod", "modinfo"])
def test_version_has_the_two_lines_of_kmod(tool):
    for arguments in (["-V"], ["--ver" if tool != "rmmod" else "--vers"], ["x", "-V", "-Z"]):
        status, out, err = ours(tool, arguments)
        first, second = out.decode().splitlines()
        assert (status, err, first) == (0, b"", f"kmodd version {__version__}")
        assert second.split()[1:] == ["+XZ", "+ZLIB", "-LIBCRYPTO", "-EXPERIMENTAL"]
        kmod = theirs(tool, arguments)
        assert kmod[0] == 0
        assert [item[1:] for item in kmod[1].decode().split()[3:]] == [item[1:] for item in second.split()]


def test_what_is_behind_an_operand_with_posixly_correct(monkeypatch):
    monkeypatch.setenv("POSIXLY_CORRECT", "1")
    assert b"_V is not currently loaded" in check_same("rmmod", ["kmodd_none", "-V"])[2]


# modinfo


@pytest.fixture
def files(here):
    """Module files of every kind, in the current directory."""
    plain = image([(".text", b"code"), (".modinfo", INFO)])
    small = image([(".modinfo", b"a=b\0")])
    for name, data in {
        "full.ko": plain,
        "no-section.ko": image([(".text", b"")]),
        "empty-section.ko": image([(".modinfo", b"")]),
        "one-byte.ko": image([(".modinfo", b"x")]),
        "nothing.ko": image([(".modinfo", b"\0\0\0")]),
        "two.ko": image([(".modinfo", b"a=b\0"), (".modinfo", b"c=d\0")]),
        "elf32.ko": image([(".modinfo", b"a=b")], bits=32, little=False),
        "text.ko": b"hello, this is no ELF file",
        "empty.ko": b"",
        "cut.ko": small[:100],
        "name.txt": small,
        "a-b.c.ko": small,
        "x509.ko": signed(small, b"SIGNERKEYvalue", kind=1, hash_number=4, signer=6, key=3, size=5),
        "packed.ko.xz": lzma.compress(plain, check=lzma.CHECK_CRC32),
        "cut.ko.xz": lzma.compress(plain)[:-20],
        "xz.ko": lzma.compress(plain, check=lzma.CHECK_CRC32),
        "garbage.ko.xz": lzma.compress(b"no module"),
    }.items():
        (here / name).write_bytes(data)
    (here / "directory.ko").mkdir()
    return sorted(os.listdir("."))


OPTIONS = ["", "-a", "-l", "-d", "-p", "-n", "-0", "-0p", "-m", "-F name", "-F parmtype", "-F multi -0", "-F sig_key",
           "-F none", "-F noequals", "-F lic", "-F=", "-la", "-nl", "-p -F multi"]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_modinfo_of_files(files, options):
    seen = set()
    for name in files:
        seen.add(check_same("modinfo", [*options.split(), name])[1])
    assert len(seen) > 1 or options in ("-m", "-F none", "-F lic", "-F=")
    check_same(
        "modinfo", [*options.split(), "name.txt", *files, "nope", "./full.ko", f"{os.getcwd()}//full.ko"]
    )


def test_modinfo_of_compressed_files(here):
    for path in small_modules(30)[::10]:
        shutil.copy(path, here)
        name = os.path.basename(path)
        subprocess.run(["xz", "-k", "--check=crc32", name], check=True)
        subprocess.run(["zstd", "-q", name], check=True)
        plain = ours("modinfo", [name])
        assert plain[0] == 0
        assert len(plain[1].splitlines()) > 5
        for packed in (f"{name}.xz", f"{name}.zst"):
            status, out, _ = check_same("modinfo", [packed])
            assert (status, out.splitlines()[1:]) == (0, plain[1].splitlines()[1:])
        # Debian's kmod is built without zlib, so there is nothing to compare with.
        (here / f"{name}.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
        assert ours("modinfo", [f"{name}.gz"])[1].splitlines()[1:] == plain[1].splitlines()[1:]


@pytest.mark.parametrize("modules", [real_modules, compressed_modules])
def test_modinfo_of_all_modules(modules):
    modules = modules()
    assert len(modules) > 1000
    for at in range(0, len(modules), 500):
        some = modules[at : at + 500]
        found, wanted = ours("modinfo", some), theirs("modinfo", some)
        if found != wanted:
            for path in some:
                check_same("modinfo", [path])
        assert found == wanted
        assert found[1].count(b"\nvermagic:") == len(some)


@pytest.mark.parametrize("options", ["-p", "-0", "-F alias", "-F signature", "-n"])
def test_modinfo_of_many_modules_with_options(options):
    modules = [*real_modules()[::10], *compressed_modules()[::10]]
    status, out, err = check_same("modinfo", [*options.split(), *modules])
    assert (status, err) == (0, b"")
    assert len(out) > 1000


@pytest.fixture
def rooted(here):
    """The releases of the kernel trees, each in a root of its own that `-b` takes."""
    real_modules()  # or there are none
    found = {}
    for number, tree in enumerate(trees()):
        root = here / f"root{number}"
        (root / "lib").mkdir(parents=True)
        (root / "lib/modules").symlink_to(tree.parent)
        found[tree.name] = root.name
    return found


@pytest.mark.parametrize(
    "line",
    [
        "unix", "-0 unix", "-n unix", "-F name unix", "-F filename unix", "-p button", "-F alias unix", "-m unix", "net-pf-1",
        "-m net-pf-1", "crypto-crc32c", "-n crypto-crc32c", "-F name dummy", "-m dummy", "-m crypto-crc32c", "dummy.ko",
        "-m dummy.ko", "-m -n snd-hda-intel", "snd-hda-intel snd_hda_intel -n", "symbol:crc16", "-m symbol:crc16", "-n fs-ext4",
        "a[b", "-m a[b", "a]b", "nope", "-m nope", "unix dummy nope ext4", "./dummy", "EXT4",
        "-n usb:v0781p5567d0100dc00dsc00dp00ic08isc06ip50in00", "-F license nvme nvme-core xfs",
    ],
)  # fmt: skip
def test_modinfo_of_names(line, rooted):
    for release, root in rooted.items():
        check_same("modinfo", ["-b", root, "-k", release, *line.split()])


def test_modinfo_of_names_wherever_the_root_is(here, rooted):
    for release, root in rooted.items():
        for base in (root, f"{root}/", f"./{root}/lib/..", str(here / root)):
            status, out, _ = check_same("modinfo", ["-b", base, "-k", release, "-n", "loop", "dummy"])
            last = out.decode().splitlines()[-1]
            assert (status, os.path.isabs(last), os.path.isfile(last)) == (0, True, True)
        check_same("modinfo", ["-b", "none", "-k", release, "dummy"])
        check_same("modinfo", ["-b", root, "-k", "none", "dummy"])
    check_same("modinfo", ["-k", "none", "dummy"])


def test_modinfo_says_that_the_index_is_damaged(here):
    tree = here / "lib/modules/1"
    tree.mkdir(parents=True)
    (tree / "modules.dep").write_text("kernel/a.ko:\nkernel/b.k")
    status, out, err = ours("modinfo", ["-b", str(here), "-k", "1", "a"])
    assert (status, out) == (1, b"")
    assert err.startswith(b"modinfo: ERROR: ")
    assert b"modules.dep" in err


# insmod and rmmod, with what this machine's kernel says


@pytest.mark.parametrize("line", ["nope", "-s nope", "-- -x", "/nope/x", "./", "/", ". x=y", "m.ko/x"])
def test_insmod_of_what_cannot_be_read(here, line):
    (here / "m.ko").write_bytes(image([(".modinfo", b"a=b\0")]))
    status, out, err = check_same("insmod", line.split())
    assert (status, out) == (1, b"")
    assert err.startswith(b"insmod: ERROR: could not ")
    check_same("insmod", [""])


@pytest.mark.parametrize("line", ["kmodd_none", "kmodd-a kmodd-b", "-v kmodd_none", "kmodd.x.ko", "m-x.ko", "./m-x.ko",
                                  "/nope/m-x", "-", "-- -x", "kmodd[x-y"])  # fmt: skip
def test_rmmod_of_what_is_not_loaded(here, line):
    (here / "m-x.ko").write_bytes(b"")
    status, out, err = check_same("rmmod", line.split())
    assert (status, out) == (1, b"")
    assert b"is not currently loaded" in err or b"Module unloading is not supported" in err


# All of them with a kernel that is made up

PROC_MODULES = """\
first 16384 2 second,third, Live 0xffffffffc0000000
second 20480 1 third, Live 0xffffffffc0000000 (OE)
third 1234567890 0 - Live 0x0000000000000000
permanent 8192 1 [permanent], Live 0x0000000000000000
coming 1000 1 - Loading 0x0000000000000000
going 1000 0 - Unloading 0x0000000000000000
a_name_that_is_longer_than_its_column 65536 0 - Live 0x0000000000000000
kept 4096 - - Live 0x0000000000000000
"""
TABLE = """\
Module                  Size  Used by
first                  16384  2 second,third
second                 20480  1 third
third               1234567890  0
permanent               8192  1
coming                  1000  1
going                   1000  0
a_name_that_is_longer_than_its_column    65536  0
kept                    4096  -2
"""


def test_lsmod_of_the_text_alone():
    assert lsmod.table(PROC_MODULES, "/nonexistent") == TABLE
    assert lsmod.table("", "/nonexistent") == "Module                  Size  Used by\n"
    assert lsmod.table("\nodd\n", "/nonexistent").splitlines()[1:] == ["odd                       -2  -2"]


def test_lsmod_without_a_list():
    if os.path.exists("/proc/modules"):
        pytest.skip("this kernel has modules")
    status, out, err = ours("lsmod", [])
    assert (status, out) == (1, b"")
    assert err == b"Error: could not get list of modules: No such file or directory\n"
    assert theirs("lsmod", [])[:2] == (status, out)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    made = tmp_path_factory.mktemp("fakeroot") / "fakeroot.so"
    source = HERE / "fakeroot.c"
    flags = ["-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", made, source], check=True)
    return made


@pytest.fixture
def made_up(here, library):
    """Compare both tools as programs; returns what they did, with their status."""
    for line in PROC_MODULES.splitlines():
        name, size, count, users, state, *_ = line.split()
        directory = here / "sys/module" / name
        (directory / "holders").mkdir(parents=True)
        (directory / "coresize").write_text(f"{size}\n")
        (directory / "initstate").write_text({"Live": "live", "Loading": "coming"}.get(state, "going") + "\n")
        if count != "-":
            (directory / "refcnt").write_text(f"{count}\n")
        for user in users.split(","):
            if user.isalpha():
                (directory / "holders" / user).symlink_to(f"../../{user}")
    (here / "sys/module/in_image/parameters").mkdir(parents=True)
    (here / "proc").mkdir()
    (here / "proc/modules").write_text(PROC_MODULES)
    tree = here / "lib/modules" / platform.release()
    tree.mkdir(parents=True)
    (tree / "modules.builtin").write_text("kernel/fs/in-image.ko\n")
    (tree / "modules.order").touch()
    (tree / "modules.builtin.modinfo").write_bytes(b"in_image.license=GPL\0")
    if not (SBIN / "depmod").exists():
        pytest.skip("kmod's depmod is not installed")
    subprocess.run([SBIN / "depmod", "-b", here], check=True)

    def compare(tool: str, *arguments: str, **environment: str) -> Done:
        environment |= {"LD_PRELOAD": str(library), "FAKEROOT": str(here)}
        code = (
            f"import sys; from kmodd.cli.classic.{tool} import main; sys.exit(main(sys.argv[1:], '{tool}'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )
        found = done.returncode, done.stdout, done.stderr
        assert found == theirs(tool, list(arguments), **environment)
        return found

    return compare


def test_lsmod(made_up):
    status, out, _ = made_up("lsmod")
    order = [b"second,third", b"third,second"]  # the file system's
    assert status == 0
    assert out.replace(order[1], order[0]) == TABLE.encode()


@pytest.mark.parametrize("number", [0, errno.EAGAIN, errno.ENOSYS])
@pytest.mark.parametrize(
    ("line", "calls"),
    [
        ("first second", 0),
        ("third", 1),
        ("-v going", 1),
        ("-f first third", 2),
        ("permanent coming kept nope", 0),
        ("-s third nope", 1),
        ("in-image", 0),
        ("-f in_image", 1),
        ("./third.ko", 1),
    ],
)
def test_rmmod(made_up, here, line, calls, number):
    (here / "third.ko").touch()
    environment = {"FAKE_ERRNO": str(number)} if number else {}
    status, _, err = made_up("rmmod", *line.split(), **environment)
    assert err.count(b"delete_module(") == calls
    assert status == (0 if not number and calls == len([w for w in line.split() if w[0] != "-"]) else 1)


NUMBERS = (
    errno.ENOENT,
    errno.ESRCH,
    errno.ENOEXEC,
    errno.EINVAL,
    errno.EEXIST,
    errno.EPERM,
    errno.EKEYREJECTED,
)


@pytest.mark.parametrize("number", NUMBERS)
def test_insmod_says_what_the_kernel_said(made_up, here, number):
    (here / "m.ko").write_bytes(image([(".modinfo", b"a=b\0")]))
    status, _, err = made_up("insmod", "m.ko", 'a="b c"', "d", FAKE_ERRNO=str(number))
    call, message = err.splitlines()
    assert (status, call) == (1, b'finit_module(a="b c" d, 0)')
    assert message.startswith(b"insmod: ERROR: could not insert module m.ko: ")


@pytest.mark.parametrize("suffix", ["", ".xz", ".zst"])
def test_insmod_by_either_call(made_up, here, suffix):
    plain = image([(".modinfo", b"vermagic=6.1 SMP\0license=GPL\0"), ("__versions", bytes(64))])
    (here / "m.ko").write_bytes(plain)
    if suffix:
        subprocess.run(
            [{".xz": "xz", ".zst": "zstd"}[suffix], "-q", *(["-Ccrc32"] * (suffix == ".xz")), "m.ko"],
            check=True,
        )
    name = f"m.ko{suffix}"
    calls = []
    for environment in ({}, {"FAKE_NO_FINIT": "1"}):
        for options in ([], ["-f"]):
            status, _, err = made_up("insmod", *options, name, "x=y", **environment)
            assert status == 0
            calls.append(err)
    assert calls[:2] == [b"finit_module(x=y, 0)\n", b"finit_module(x=y, 0x3)\n"] or suffix
    assert all(call.startswith(b"init_module(x=y, ") for call in (calls if suffix else calls[2:]))
    assert calls[2] != calls[3]  # forced: the image is not the same


@pytest.mark.parametrize(
    ("check", "call"),
    [
        (lzma.CHECK_NONE, b"finit_module(, 0x4)\n"),
        (lzma.CHECK_CRC32, b"finit_module(, 0x4)\n"),
        (lzma.CHECK_CRC64, b"init_module(, "),
        (lzma.CHECK_SHA256, b"init_module(, "),
    ],
)
def test_insmod_lets_the_kernel_decompress_what_it_can(made_up, here, library, check, call):
    """Not in kmod 30: with Linux 5.17 and /sys/module/compression a compressed file goes as it is."""
    (here / "m.ko.xz").write_bytes(lzma.compress(image([(".modinfo", b"a=b\0")]), check=check))
    (here / "sys/module/compression").write_text("xz\n")
    code = "import sys; from kmodd.cli.classic.insmod import main; sys.exit(main(['m.ko.xz'], 'insmod'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env={
        **os.environ, "LD_PRELOAD": str(library), "FAKEROOT": str(here), "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.startswith(call)


def test_insmod_of_a_damaged_file(made_up, here):
    (here / "m.ko.xz").write_bytes(lzma.compress(bytes(9999), check=lzma.CHECK_CRC32)[:-20])
    status, _, err = made_up("insmod", "m.ko.xz")
    assert (status, err) == (1, b"insmod: ERROR: could not insert module m.ko.xz: Invalid parameters\n")


# Start


@pytest.mark.parametrize("tool", ["lsmod", "rmmod", "insmod", "modinfo"])
def test_nothing_heavy_is_imported(tool):
    code = (
        f"import sys; before = set(sys.modules); import kmodd.cli.classic.{tool};"
        "print(*sorted({'asyncio', 'dataclasses', 'getopt', 'typing', 'json', 'lzma', 'kmodd.tree.index'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")})  # fmt: skip
    assert done.stdout.split() == []
