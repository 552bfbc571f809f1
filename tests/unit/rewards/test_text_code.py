"""Programs of a model: what they score, and what they cannot do."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards import isolation
from raftdiff.rewards import sandbox as sandboxes
from raftdiff.rewards.code import CodeConfig
from raftdiff.rewards.isolation import ALLOW, CALLS, CLONE_THREAD, EPERM, REFUSE, call_filter
from raftdiff.rewards.sandbox import Outcome, Sandbox
from raftdiff.rewards.texts import fenced
from raftdiff.testing.conformance import check_reward
from raftdiff.types import Prompt, Sample

shut_in = pytest.mark.skipif(
    sandboxes._missing() is not None, reason=f"programs cannot be shut in here: {sandboxes._missing()}"
)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
ALLOWED = Sandbox(seconds=2, network="allow" if sandboxes._missing() else "none")


def answers(*texts: str, **meta: Any) -> list[Sample[str]]:
    prompt = Prompt("double", "Double a number.", "", "", meta=meta)
    return [Sample(0, prompt, index, index, "policy", text) for index, text in enumerate(texts)]


def scores(texts: Sequence[str], own: Any = (), **options: Any) -> list[float]:
    reward = check(CodeConfig, {"seconds": 2, "network": ALLOWED.network, **options}).build()
    return reward.score(answers(*texts, tests=own)).tolist()


TESTS = ["assert double(2) == 4", "assert double(3) == 6", "assert double('a') == 'aa'"]


def test_the_scale_from_no_program_to_all_tests_passed() -> None:
    found = scores(
        [
            "",
            "def double(x) return x",
            "x = 1",
            "def double(x): raise ValueError(x)",
            "def double(x): return x ** 2",
            "def double(x): return int(x) * 2",
            "def double(x): return x * 2",
        ],
        TESTS,
    )
    assert found == [0.0, 0.0, 0.25, 0.25, 0.5, 0.75, 1.0]


def test_the_steps_tell_a_program_that_runs_from_one_that_breaks_and_all_knows_no_steps() -> None:
    texts = [
        "def double(x) return x",
        "def double(x): return y",
        "def double(x): return x ** 3 + 1",
        "def double(x): return int(x) * 2",
        "def double(x): return x * 2 if x != 3 else 0",
        "def double(x): return x * 2",
    ]
    steps = [0.0, 0.1, 0.2, 0.1 + 0.9 * 2 / 3, 0.2 + 0.8 * 2 / 3, 1.0]
    tests = [*TESTS[:2], "assert double(4.5) == 9 or double('a') == 'aa'"]
    assert scores(texts[:3], TESTS[:2], grades="steps") == pytest.approx(steps[:3])
    assert scores([texts[3]], TESTS, grades="steps") == pytest.approx(steps[3:4])
    assert scores(texts[4:], tests, grades="steps") == pytest.approx(steps[4:])
    assert scores(texts, TESTS, grades="all") == [0, 0, 0, 0, 0, 1]


def test_equal_programs_are_run_once_and_those_with_other_tests_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    report = sandboxes._report
    monkeypatch.setattr(sandboxes, "_report", lambda *args, **options: ran.extend(args[1]) or report(*args, **options))
    reward = CodeConfig(seconds=2, network=ALLOWED.network).build()
    monkeypatch.setattr(sandboxes, "_missing", lambda: None if ALLOWED.network == "none" else "not here")
    good, bad = "def double(x): return x * 2", "def double(x): return 4"
    assert reward.score(answers(good, bad, good, "", tests=TESTS)).tolist() == [1, 0.5, 1, 0]
    assert [task["program"] for task in ran] == [good, bad]
    assert reward.score(answers(bad, tests=TESTS)).tolist() == [0.5]
    assert reward.score(answers(bad, tests=TESTS[:1])).tolist() == [1]
    assert len(ran) == 3


def test_many_programs_in_one_sandbox_know_nothing_of_each_other() -> None:
    flood = (
        "import os\nfor fd in range(64):\n  try:\n    while True: os.write(fd, b'x\\n' * 2**15)\n  except OSError: 0"
    )
    leaves = "import os, builtins, sys\nopen('random.py', 'w').write('1 / 0')\nbuiltins.len = sys.exit\nos._exit(3)"
    looks = "import os, random\nassert os.read(0, 9) == os.pread(0, 9, 0) == b'', 'the tasks of the others'\n"
    looks += "assert 'random.py' not in os.listdir() and len('ab') == 2\n"
    looks += "import gc\nassert 'zeb' + 'ra' not in str([one for one in gc.get_objects() if type(one) is dict])"
    good = "def double(x): return x * 2  # zebra"
    tasks = [(good, TESTS), (flood, TESTS), (leaves, TESTS), (looks, ()), ("x = 1\n" * 2**20, ()), (good, TESTS[:1])]
    assert [one.passed for one in ALLOWED.run_all(tasks)] == [3, 0, 0, 1, 0, 1]
    assert ALLOWED.run_all([]) == []


def test_without_tests_it_is_enough_to_run_to_the_end() -> None:
    assert scores(["print(1)", "import sys; sys.exit()", "import sys; sys.exit(1)", "1 / 0", "1 /"]) == [
        1,
        1,
        0.25,
        0.25,
        0,
    ]


def test_the_program_is_the_first_fenced_block_in_python() -> None:
    said = "Here it is:\n```python\ndef double(x):\n    return x * 2\n```\nUse it so:\n```python\nraise 0\n```\n"
    shell = "```bash\npip install x\n```\n" + said
    cut_off = said[: said.index("\n```\nUse")]
    untagged = said.replace("```python", "```", 1)
    assert scores([said, shell, cut_off, untagged], TESTS) == [1, 1, 1, 1]
    assert fenced("~~~py\na\n```\n~~~", ["py"]) == "a\n```\n", "a fence ends with its own kind"
    assert fenced("none here", ["py"]) is None
    assert fenced("```bash\nls\n```", ["py"]) is None


def test_the_answer_may_go_on_from_the_prompt() -> None:
    prompt = Prompt("f", "def double(x):\n", "", "", meta={"tests": TESTS})
    reward = CodeConfig(prepend_prompt=True, network=ALLOWED.network).build()
    assert reward.score([Sample(0, prompt, 0, 0, "policy", "    return 2 * x")]).tolist() == [1.0]


def test_a_script_is_tested_by_what_it_prints() -> None:
    script = "if __name__ == '__main__':\n    print(int(input()) * 2, '', sep='\\n')"
    tests = [{"input": "4\n", "output": "8"}, {"input": "5", "output": "10 \n"}, {"input": "6", "output": "13"}]
    assert scores([script, "print(8)", "input(); input()"], tests) == [0.75, 0.5, 0.25]


def test_both_kinds_of_tests_and_those_of_the_recipe() -> None:
    program = "def double(x): return x * 2\nif __name__ == '__main__': print(double(int(input())))"
    found = scores([program], [{"input": "4", "output": "8"}], tests=["assert double(1) == 2", "assert double(1) == 3"])
    assert found == [pytest.approx(0.75)]


def test_dataclasses_find_their_module() -> None:
    program = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1"
    )
    assert scores([program], ["assert A().x == 1"]) == [1.0]


def test_leaving_early_passes_nothing() -> None:
    quits = ["import os; os._exit(0)", "import sys; sys.exit(0)", "def double(x):\n    raise SystemExit(0)"]
    assert scores(quits, TESTS) == [0.25, 0.25, 0.25]
    prints = (
        "import os\nprint('passed')\nfor fd in range(1, 9):\n  try: os.write(fd, b'passed\\n')\n  except OSError: 0"
    )
    assert scores([prints], TESTS) == [0.25]


def test_tests_before_a_crash_count() -> None:
    program = "def double(x):\n    if x == 3:\n        while True: pass\n    return x * 2"
    assert scores([program], TESTS, seconds=1) == [0.5]


def test_an_endless_loop_is_ended_in_time() -> None:
    outcome = Sandbox(seconds=1, network=ALLOWED.network).run("while True: pass")
    assert outcome == Outcome(compiled=True, ran=False, passed=0, tests=1, timed_out=False)


def test_one_that_only_waits_is_ended_by_the_clock() -> None:
    outcome = Sandbox(seconds=1, network=ALLOWED.network).run("import time; time.sleep(600)")
    assert outcome == Outcome(compiled=True, ran=False, passed=0, tests=1, timed_out=True)


def test_one_that_catches_everything_is_ended_too() -> None:
    program = "import signal\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n  except OSError: 0\n"
    program += "while 1:\n  try:\n    while 1: pass\n  except BaseException: pass"
    assert Sandbox(seconds=1, network=ALLOWED.network).run(program).passed == 0


@pytest.mark.parametrize(
    "program",
    [
        "a = bytearray(10**10)",
        "a = []\nwhile True: a.append(bytearray(10**7))",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "import mmap\na = [mmap.mmap(-1, 10**8) for _ in range(1000)]",
        "import os\na = os.memfd_create('a')",
    ],
)
def test_memory_is_limited(program: str) -> None:
    small = Sandbox(seconds=2, memory_mb=256, network=ALLOWED.network)
    assert small.run(program).passed == 0
    assert small.run("a = bytearray(10**8)").passed == 1


def test_a_fork_bomb_has_no_children() -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: {}"
    before = len(list(Path("/proc").glob("[0-9]*")))
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(len(list(Path("/proc").glob("[0-9]*"))))

    thread = threading.Thread(target=watch)
    thread.start()
    outcome = Sandbox(seconds=1, network=ALLOWED.network).run(bomb.format("pass"))
    done.set()
    thread.join()
    assert outcome.passed == 0
    assert max(seen) < before + 40, "other programs come and go on this machine; a bomb would be thousands"
    assert ALLOWED.run(bomb.format("raise")) == Outcome(compiled=True, ran=False, passed=0, tests=1, timed_out=False)


@pytest.mark.parametrize(
    "program",
    [
        "import subprocess; subprocess.run(['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.system('true') and 1 / 0",
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
    ],
)
def test_no_other_program_is_started(program: str) -> None:
    assert ALLOWED.run(program).passed == 0


def test_threads_are_allowed() -> None:
    program = "from concurrent.futures import ThreadPoolExecutor as Pool\nassert list(Pool(4).map(abs, [-1])) == [1]"
    assert ALLOWED.run(program).passed == 1


@shut_in
def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    kept, mode = tmp_path / "kept.txt", 0o640
    kept.write_text("mine")
    kept.chmod(mode)
    attempts = [
        f"open({str(kept)!r}, 'w').write('yours')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, 'here')",
        f"import os; os.link({str(kept)!r}, 'here')",
        f"import os; os.chmod({str(kept)!r}, 0o777)",
        f"import os; os.utime({str(kept)!r})",
        f"import os; os.mkdir({str(tmp_path / 'new')!r})",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        "open('../x', 'w')",
        "open('/dev/shm/x', 'w')",
        f"import os; os.symlink({str(kept)!r}, 'link'); open('link', 'w')",
    ]
    assert [Sandbox().run(attempt).passed for attempt in attempts] == [0] * len(attempts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.txt"]
    assert kept.read_text() == "mine"
    assert kept.stat().st_mode & 0o777 == mode


@shut_in
def test_its_own_folder_is_empty_writable_and_gone_afterwards() -> None:
    program = "import os\nassert os.listdir() == []\nopen('a', 'w').write('1')\n"
    program += "assert open(os.path.abspath('a')).read() == '1'"
    before = set(Path("/tmp").iterdir())
    assert [Sandbox().run(program).passed for _ in range(2)] == [1, 1]
    assert not [path for path in set(Path("/tmp").iterdir()) - before if (path / "a").exists()]


@pytest.mark.parametrize(
    "program",
    [
        "open('big', 'wb').write(bytes(9 * 2**20))",
        pytest.param("for n in range(9): open(str(n), 'wb').write(bytes(2**20))", marks=shut_in),
        pytest.param("for n in range(2000): open(str(n), 'wb').close()", marks=shut_in),
        "a = [open('/dev/null') for _ in range(1000)]",
    ],
)
def test_files_are_limited_in_size_and_number(program: str) -> None:
    assert Sandbox(folder_mb=4, network=ALLOWED.network).run(program).passed == 0


@shut_in
def test_the_network_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        program = f"import socket\nsocket.create_connection({address!r}, timeout=1)"
        assert Sandbox().run(program).passed == 0
        assert Sandbox(network="allow").run(program).passed == 1, "it is the sandbox that shuts it off"
    with_name = "import socket\nsocket.getaddrinfo('localhost', 80)\nsocket.socket(socket.AF_UNIX)"
    assert Sandbox().run(with_name).passed == 0


@shut_in
@pytest.mark.parametrize("namespace", ["as this user", "in a user namespace"])
def test_no_device_pipe_or_socket_of_the_machine_is_in_reach(tmp_path: Path, namespace: str) -> None:
    """They open for writing on a file system that is read-only, too."""
    fifo, port = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    controller, terminal = os.openpty()
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(port))
            listening.listen()
            programs = {
                f"import os\nos.write(os.open({str(fifo)!r}, os.O_WRONLY | os.O_NONBLOCK), b'kept secret')": 0,
                f"import os\nos.write(os.open({os.ttyname(terminal)!r}, os.O_WRONLY | os.O_NOCTTY), b'typed')": 0,
                "open('/dev/tty', 'r+b', buffering=0)": 0,
                f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(port)!r})": 0,
                "import os\nassert sorted(os.listdir('/dev')) == ['null', 'urandom', 'zero']": 1,
                "open('/dev/null', 'w').write('x')\nassert len(open('/dev/urandom', 'rb').read(8)) == 8": 1,
                "import os\nassert not any(os.path.exists(at) for at in ('/etc/passwd', '/run', '/sys', '/var'))": 1,
                "import os\nassert os.getuid() and os.getgid() and not os.getgroups()": 1,
                "import os\nos.mknod('null', 0o020666, os.makedev(1, 3))": 0,
            }
            outcomes = _outcomes(list(programs), drop_to_user=namespace != "as this user")
        assert dict(zip(programs, outcomes, strict=True)) == programs
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    finally:
        for descriptor in (reader, controller, terminal):
            os.close(descriptor)


def _outcomes(programs: list[str], *, drop_to_user: bool) -> list[int]:
    """How many of each one's tests are passed; ``drop_to_user``: by a root that may not mount, as in a container."""
    script = (
        "import ctypes, json, sys\nfrom raftdiff.rewards.sandbox import Sandbox\n"
        f"if {drop_to_user}: ctypes.CDLL(None).prctl(24, 21, 0, 0, 0)\n"  # PR_CAPBSET_DROP, CAP_SYS_ADMIN
        "boxes = [Sandbox(network=network) for network in ('none', 'allow')]\n"
        "print([min(box.run(program).passed for box in boxes) for program in json.load(sys.stdin)])"
    )
    given = json.dumps(programs)
    ended = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, text=True, check=True)
    found: list[int] = json.loads(ended.stdout)
    return found


EACH = "import os\nfor fd in range(64):\n  try:"


@pytest.mark.parametrize(
    "program",
    [
        f"{EACH} os.ftruncate(fd, 0)\n  except OSError: 0\nos._exit(0)",
        f"{EACH} os.pwrite(fd, b'!the disk is broken', 0)\n  except OSError: 0\nos._exit(0)",
        f"{EACH} os.write(fd, b'\\n!the disk is broken\\n')\n  except OSError: 0\nos._exit(1)",
        "import os\nos.closerange(0, 64)\nos.abort()",
        f"{EACH}\n    while True: os.write(fd, b'x\\n' * 2**15)\n  except OSError: 0\nos._exit(0)",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\nraise SystemExit",
    ],
)
def test_the_report_is_not_the_programs_to_write(program: str) -> None:
    assert ALLOWED.run(program, TESTS) == Outcome(compiled=True, ran=False, passed=0, tests=3, timed_out=False)


def test_an_endless_answer_is_no_program() -> None:
    assert ALLOWED.run("x = 1\n" * 2**20) == Outcome(compiled=False, ran=False, passed=0, tests=1, timed_out=False)


@shut_in
@pytest.mark.parametrize(("network", "status"), [(False, 1), (True, 0)])
def test_the_namespaces_shut_the_network_off_without_the_filter_too(network: bool, status: int) -> None:
    script = (sandboxes.HERE / "isolation.py").read_text().partition("if __name__")[0]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connect = f"import socket\nsocket.create_connection({listening.getsockname()!r}, timeout=1)"
        program = f"{script}\nown_namespaces(network={network}, as_root=False)\n{connect}"
        ended = subprocess.run([sys.executable, "-c", program], check=False, stderr=subprocess.DEVNULL)
    assert ended.returncode == status


@shut_in
def test_it_sees_no_environment_no_process_and_no_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    program = "import os, sys\nassert 'JUDGE_KEY' not in os.environ, os.environ\nassert os.getpid() == 1\n"
    program += "assert os.getuid() == os.geteuid() != 0\nassert os.listdir('/proc') == []\nassert sys.flags.safe_path"
    assert Sandbox().run(program).passed == 1
    undo = "import ctypes\nlibc = ctypes.CDLL(None)\n"
    undo += "a = libc.mount(b'none', b'/proc', b'tmpfs', ctypes.c_ulong(0), None), libc.umount(b'/proc')\n"
    undo += "b = libc.unshare(0x10000000), libc.ptrace(0, 0, 0, 0)\nassert a == (-1, -1) and b == (-1, -1), (a, b)"
    assert Sandbox().run(undo).passed == 1


def test_a_signal_does_not_reach_the_trainer() -> None:
    program = (
        f"import os, signal\nfor pid in ({os.getpid()}, os.getppid() or {os.getpid()}): os.kill(pid, signal.SIGKILL)"
    )
    assert ALLOWED.run(program).passed == 0
    assert Sandbox(network="allow").run(program).passed == 0


def test_the_same_program_gives_the_same_each_time() -> None:
    sets = "x = ''.join({'a', 'b', 'c', 'd', 'e', 'f'})\nimport random\ny = random.random()"
    tests = ["assert x == 'abcdef'", "assert x < 'd'", "assert y < 0.5", "assert y < 0.25", "assert x[1] < 'd'"]
    outcomes = {ALLOWED.run(sets, tests).passed for _ in range(4)}
    assert len(outcomes) == 1


def test_tests_of_another_form_get_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r"prompt 'double': tests\.1: this test is not Python, so no program could pass"
    ):
        scores(["x"], ["assert 1", "assert ("])
    with pytest.raises(
        UserError, match=r"prompt 'double': tests\.0: a test is Python statements, or a mapping of 'inp"
    ):
        scores(["x"], [{"input": "1"}])
    with pytest.raises(UserError, match=r"prompt 'double': tests: this is a test or a list of them, not int\."):
        scores(["x"], 3)
    with pytest.raises(UserError, match=r"the reward 'code': tests\.0: this test is not Python"):
        CodeConfig(tests=["1 +"], network="allow").build()


def test_tests_are_looked_at_before_anything_is_sampled() -> None:
    def prompts(*tests: Any) -> list[Prompt]:
        return [Prompt(f"p{number}", "Double.", "", "", meta={"tests": one}) for number, one in enumerate(tests)]

    reward = CodeConfig(network=ALLOWED.network).build()
    reward.check_prompts(prompts(TESTS, "check(double)", [{"input": "", "output": "x"}]))
    with pytest.raises(UserError, match=r"prompt 'p1': tests\.0: this test is not Python"):
        reward.check_prompts(prompts(TESTS, ["assert ("]))
    idle = [
        "def check(f):\n    assert f(1) == 2",
        "MOD = 10**9 + 7",
        "class T(unittest.TestCase):\n    def test(self): ...",
    ]
    for tests in (*idle, '["assert double(2) == 4"]', ["A = {'b': 1}", "# assert it"]):
        with pytest.raises(UserError, match=r"prompt 'p0': tests: these tests call and assert nothing"):
            reward.check_prompts(prompts(tests))
    forgotten = [
        "double(1) == 2",
        "import math\ndef check(f):\n    assert f(1) == 2",
        "from unittest import TestCase\nclass T(TestCase):\n    def test(self): self.assertEqual(double(1), 2)",
        "async def test():\n    assert double(1) == 2",
        "x: int = 3\ndef check(f): ...",
        "def check(f): ...\nif __name__ == '__main__':\n    check(double)",
        "assert (double(1) == 2, 'why')",
        "assert True",
        "check = lambda: double(1) == 2",
        "print(double(1))",
    ]
    for test in forgotten:
        with pytest.raises(UserError, match=r"prompt 'p0': tests: these tests call and assert nothing that a program"):
            reward.check_prompts(prompts([test]))
    at_once = [
        "if double:\n    assert double(1) == 2",
        "x: int = double(2)",
        "assert ()",
        "class Test:\n    assert double(2) == 4",
        "def t(x=double(2)): ...",
        "@run\ndef t(): ...",
        "double.x = 1",
    ]
    reward.check_prompts(prompts(*([one] for one in at_once)))
    with pytest.warns(match=r"'code': 2 of 3 prompts have no tests under 'tests', the first 'p1': there every program"):
        reward.check_prompts(prompts(TESTS, None, []))


@pytest.mark.parametrize(
    "test",
    [
        "return double(1) == 2",
        "await double(1)",
        "yield double(1)",
        "break",
        "nonlocal double",
        "def f(a, a): ...",
        "from __future__ import braces",
    ],
)
def test_what_can_be_parsed_and_not_compiled_is_no_test(test: str) -> None:
    reward = CodeConfig(network=ALLOWED.network).build()
    with pytest.raises(
        UserError, match=r"prompt 'double': tests\.0: this test is not Python, so no program could pass"
    ):
        reward.check_prompts([answers("x", tests=[test])[0].prompt])


def test_a_definition_is_a_part_of_the_next_test_and_none_of_its_own() -> None:
    check = "def check(f):\n    assert f(2) == 4"
    wrong, right = "def double(x): return 9", "def double(x): return x * 2"
    assert scores([wrong, right], [check, "check(double)"]) == [0.25, 1.0]
    assert scores([wrong, right], [check, "assert double(3) == 9", "check(double)"]) == [0.625, 0.625]
    assert scores([wrong, right], ["check(double)", "x = 1"], tests=["import math", check]) == [0.25, 1.0]
    with pytest.raises(UserError, match=r"tests: this test is not Python, .*from __future__ imports must occur at the"):
        scores([right], [check, "from __future__ import annotations\ncheck(double)"])


def test_a_machine_that_cannot_shut_in_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "_missing", lambda: "unshare: Operation not permitted")
    with pytest.raises(
        UserError, match=r"on this machine \(unshare: Operation not permitted\)\. .* set network: allow\."
    ):
        CodeConfig().build()
    reward = CodeConfig(network="allow", seconds=1).build()
    found = reward.score(answers("x = 1", "import os; os.fork()", "while True: pass", "a = bytearray(10**10)"))
    assert found.tolist() == [1, 0.25, 0.25, 0.25], "the limits and the filter hold all the same"


@pytest.mark.parametrize("what", ["tempfile.mkdtemp", "os.fork"])
def test_what_a_machine_has_no_more_of_is_said_as_what_cannot_be_shut_in(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(**_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"raftdiff.rewards.isolation.{what}", full)
    said, timed_out = isolation._copied({"isolate": False}, None, False, (0, 0))
    assert (said, timed_out) == (b"![Errno 28] No space left on device", False)
    assert not list(tmp_path.iterdir())


def test_a_program_that_takes_its_folder_away_takes_it_from_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "_missing", lambda: "unshare: Operation not permitted")
    tasks = [("import os\nos.rmdir(os.getcwd())", ()), ("open('a', 'x').close()", ()), ("open('a', 'x').close()", ())]
    assert [one.passed for one in Sandbox(seconds=2, network="allow").run_all(tasks)] == [1, 1, 1]


def test_a_sandbox_that_fails_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "ENVIRONMENT", {"PYTHONHOME": "/nowhere"})
    with pytest.raises(UserError, match=r"The sandbox of the reward 'code' failed: Python did not start"):
        ALLOWED.run("x = 1")


@pytest.mark.parametrize("machine", sorted(CALLS))
@pytest.mark.parametrize("network", [False, True])
def test_the_filter_as_the_kernel_would_run_it(machine: str, network: bool) -> None:
    """Interpreted here, so that the machine that the tests do not run on is checked too."""
    calls = CALLS[machine]
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]

    def verdict(number: int, argument: int = 0, arch: int = architecture) -> int:
        steps, at, held = call_filter(machine, network=network), 0, 0
        while True:
            code, if_true, if_false, value = steps[at]
            if code == 0x20:
                held, jump = {0: number, 4: arch, 16: argument}[value], 0
            elif code == 0x06:
                return value
            else:
                true = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
                jump = if_true if true else if_false
            at += 1 + jump

    read = {"x86_64": 0, "aarch64": 63}[machine]
    assert verdict(read) == ALLOW
    assert verdict(calls["clone"], CLONE_THREAD) == ALLOW
    assert verdict(calls["clone"]) == REFUSE | EPERM
    assert verdict(calls["ptrace"]) == REFUSE | EPERM
    lives_on, has_a_name = 1, 15
    assert verdict(calls["prctl"], lives_on) == REFUSE | EPERM, "it would still be there when the next begins"
    assert verdict(calls["prctl"], has_a_name) == ALLOW
    kinds = {socket.AF_UNIX: False, socket.AF_INET: network, socket.AF_INET6: network, 16: network, 17: False}
    assert {kind: verdict(calls["socket"], kind) == ALLOW for kind in kinds} == kinds
    assert verdict(calls["socket"], socket.AF_UNIX) == REFUSE | EPERM
    assert verdict(435) == REFUSE | 38, "clone3 does not exist, so glibc uses clone"
    assert verdict(read, arch=0x40000003) not in (ALLOW, REFUSE | EPERM), "a 32-bit program is ended"
    if machine == "x86_64":
        assert verdict(0x40000000 + read) not in (ALLOW, REFUSE | EPERM)


def test_it_keeps_the_contract() -> None:
    samples = answers("def double(x): return x * 2", "def double(x): return 4", "1 +", "", tests=TESTS)
    reward = CodeConfig(network=ALLOWED.network).build()
    report = check_reward(reward, samples)
    assert all(check.passed for check in report.checks), str(report)
