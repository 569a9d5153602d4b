"""Recorded histories: three formats, a command line, and the verdicts that are known."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from zlayer_consensus.testing.check_history import main
from zlayer_consensus.testing.linearizability import CasRegister, StringRegister, check
from zlayer_consensus.testing.linearizability._edn import EdnError, Keyword, read_forms
from zlayer_consensus.testing.linearizability._formats import Format, FormatError, read_history

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT.parent / "shared" / "histories"

# Verdicts of Porcupine's test data, https://github.com/anishathalye/porcupine: of etcd_000 to etcd_102, these are
# linearizable; etcd_095 is empty, and all others are not.
LINEARIZABLE = {
    *(2, 5, 7, 18, 25, 31, 38, 45, 48, 49, 51, 53, 56, 67, 75, 76, 80, 87, 92, 98, 100, 101, 102),
}

JEPSEN = """\
INFO  jepsen.util - 0	:invoke	:read	nil
INFO  jepsen.util - 1	:invoke	:write	3
INFO  jepsen.util - :nemesis	:info	:start	nil
INFO  jepsen.util - 0	:ok	:read	nil
INFO  jepsen.util - 1	:ok	:write	3
INFO  jepsen.util - 2	:invoke	:cas	[3 4]
INFO  jepsen.util - 2	:info	:cas	:timed-out
INFO  jepsen.util - 3   :invoke :read   nil
INFO  jepsen.util - 3   :fail   :read   :timed-out
INFO  jepsen.util - 3   :invoke :cas    [3 1]
INFO  jepsen.util - 3   :fail   :cas    [3 1]
"""
KNOSSOS = """\
; A comment, and a vector of maps.
[{:process 0, :type :invoke, :f :write, :value 1, :index 0, :time 10.5}
 {:process :nemesis, :type :info, :f :start, :value "cut off [:n1 #{:n2}]"}
 {:process 0, :type :ok, :f :write, :value 1}
 #jepsen.history.Op{:process 1, :type :invoke, :f :cas, :value [1 2]} ; a tag
 {:process 1, :type :info, :f :cas, :value [1 2], :error :timeout}
 {:process 2, :type :invoke, :f :write, :value 9}
 {:process 2, :type :fail, :f :write, :value 9} #_{:process 2}
 {:process 2, :type :invoke, :f :read, :value nil}
 {:process 2, :type :ok, :f :read, :value 2}]
"""
PUT = '{:process 0 :type :invoke :f :put :key "a" :value "1"}\n'
KV = """\
{:process 0, :type :invoke, :f :get, :key "a", :value nil}
{:process 0, :type :ok, :f :get, :key "a", :value ""}
{:process 0, :type :invoke, :f :put, :key "a", :value "x"}
{:process 0, :type :ok, :f :put, :key "a", :value "x"}
{:process 1, :type :invoke, :f :append, :key "a", :value "y"}
{:process 1, :type :ok, :f :append, :key "a", :value "y"}
{:process 0, :type :invoke, :f :get, :key "a", :value nil}
{:process 0, :type :ok, :f :get, :key "a", :value "xy"}
"""


class RecordedTests(SynchronousTestCase):
    """The histories that come with Porcupine, where they are at hand."""

    def files(self, pattern: str, count: int) -> list[Path]:
        found = sorted(RECORDED.glob(pattern))
        if not found:
            raise SkipTest(f"no {pattern} in ../shared/histories, beside the project")
        self.assertEqual(len(found), count)
        return found

    def test_registers_of_etcd(self) -> None:
        """All 102, with compare-and-swap and writes that timed out; a third are hard without equal ones in order."""
        judged = 0
        for path in self.files("jepsen/etcd_*.log", 103):
            number = int(path.stem[-3:])
            if number == 95:
                self.assertRaises(FormatError, read_history, "jepsen", path.read_bytes(), path.name)
                continue
            verdict = check(read_history("jepsen", path.read_bytes(), path.name), CasRegister())
            self.assertEqual(verdict.linearizable, number in LINEARIZABLE, path.name)
            self.assertEqual(verdict.unknown, ())
            judged += 1
            if verdict.counterexample is not None:
                self.assertLess(len(verdict.counterexample.operations), 15, path.name)
        self.assertEqual(judged, 102)

    def test_strings(self) -> None:
        """All 6, of up to 50 clients at once."""
        for path in self.files("kv/*.txt", 6):
            verdict = check(read_history("kv", path.read_bytes(), path.name), StringRegister())
            self.assertEqual(
                verdict.outcome.value, "linearizable" if "ok" in path.stem else "not linearizable", path.name
            )


class FormatTests(SynchronousTestCase):
    def describe(self, form: Format, text: str) -> list[str]:
        model = StringRegister() if form == "kv" else CasRegister()
        return [
            f"{each.process} {each.call_time:g}-{each.return_time:g} {model.describe(each)}"
            for each in read_history(form, text.encode(), "file").operations()
        ]

    def test_jepsen(self) -> None:
        """Reads that failed are left out; a compare-and-swap that failed saw another value."""
        expected = [
            "0 1-4 read → None",
            "1 2-5 write 3",
            "2 6-inf cas 3 to 4 → unknown",
            "3 10-11 cas 3 to 1 → refused",
        ]
        self.assertEqual(self.describe("jepsen", JEPSEN), expected)
        self.assertEqual(self.describe("jepsen", JEPSEN.replace("\n", "\r\n")), expected)

    def test_knossos(self) -> None:
        """What failed has not happened; what ended with info stays open; the nemesis is no client."""
        expected = ["0 2-4 write 1", "1 5-inf cas 1 to 2 → unknown", "2 9-10 read → 2"]
        self.assertEqual(self.describe("knossos", KNOSSOS), expected)
        one_per_line = KNOSSOS.replace("[{", "{").replace("2}]", "2}")
        self.assertEqual(self.describe("knossos", one_per_line), expected)
        self.assertEqual(self.describe("knossos", KNOSSOS.replace("[{", "({").replace("2}]", "2})")), expected)

    def test_kv(self) -> None:
        expected = ["0 1-2 get → ''", "0 3-4 put 'x'", "1 5-6 append 'y'", "0 7-8 get → 'xy'"]
        self.assertEqual(self.describe("kv", KV), expected)

    def test_malformed_histories_are_refused_with_file_and_line(self) -> None:
        begun = "{:process 0 :type :invoke :f :write :value 1}\n"
        for form, text, expected in (
            ("jepsen", "", "file: holds no operations"),
            ("jepsen", JEPSEN + "what?\n", "file:12: not a line of a Jepsen log"),
            ("jepsen", JEPSEN.replace("[3 4]", "3"), "file:6: a compare-and-swap has a value like [1 2], not 3"),
            ("jepsen", JEPSEN.replace("nil", "x", 1), "file:1: not an integer: x"),
            ("jepsen", JEPSEN.replace(":write", ":enqueue"), "file:2: the function 'enqueue' is none of"),
            (
                "jepsen",
                JEPSEN.replace(":ok	:write	3", ":ok	:write	4"),
                "file:5: process 1 ends with 4 what it began with 3",
            ),
            ("jepsen", JEPSEN.replace("- 3", "- 2"), "file:8: process 2 had an operation of unknown outcome"),
            ("knossos", begun + begun, "file:2: process 0 calls 'write' while"),
            ("knossos", begun.replace("invoke", "ok"), "file:1: process 0 ends what it has not begun"),
            ("knossos", begun.replace("invoke", "began"), "file:1: :type is :began, not :invoke"),
            ("knossos", begun.replace(":process 0", ":process nil"), "file:1: :process is None"),
            ("knossos", begun.replace("1}", "{}}"), "file:1: a map in :value"),
            ("knossos", begun + ":read\n", "file:2: not a map: :read"),
            ("knossos", begun + "\n{:process 1", "file:3: the text ends before '}'"),
            ("knossos", begun.replace(":write :value 1", ":cas :value 1"), "file:1: a compare-and-swap has a value"),
            ("knossos", begun + begun.replace("invoke", "ok").replace("write", "read"), "file:2: process 0 ends read"),
            ("kv", KV.replace('"xy"', "7"), "file:8: :value is not a string: 7"),
            ("kv", KV.replace(':key "a"', ":key 1", 1), "file:1: :key is not a string: 1"),
            ("kv", KV + "]", "file:9: unexpected ']'"),
            ("kv", PUT + PUT.replace("invoke", "ok").replace('"a"', '"b"'), "ends put of 'b' while it does put of 'a'"),
        ):
            with self.assertRaisesRegex(FormatError, re.escape(expected)):
                read_history(form, text.encode(), "file")  # type: ignore[arg-type]
        with self.assertRaisesRegex(FormatError, "file:2: not UTF-8"):
            read_history("kv", b"\n\xff", "file")


class EdnTests(SynchronousTestCase):
    def test_forms(self) -> None:
        for text, expected in (
            ("nil true false", [None, True, False]),
            ("1 -2 +3 4N 1.5 2e3 1M", [1, -2, 3, 4, 1.5, 2000.0, 1.0]),
            ('"a\\n\\"\\\\\\u00e9;"', ['a\n"\\é;']),
            (":a :b/c sym", [Keyword("a"), Keyword("b/c"), "sym"]),
            ("[1, (2 #{3})] []", [(1, (2, (3,))), ()]),
            ("{:a 1, :b [2]} {}", [{"a": 1, "b": (2,)}, {}]),
            ('#inst "2020" #_ [x y] 2 ; end', ["2020", 2]),
        ):
            self.assertEqual([form for _, form in read_forms(text)], expected)
        self.assertEqual([line for line, _ in read_forms('1\n"a\nb"\n\n2')], [1, 2, 5])

    def test_what_is_not_edn(self) -> None:
        for text, problem in (
            ('"abc', "line 1: unexpected '\"'"),
            ("[1\n2}", "line 2: unexpected '}'"),
            ("{1}", "line 1: a map has a key without a value"),
            ("{{} 1}", "line 1: a map is the key of a map"),
            ("\n#_", "line 2: nothing follows #_"),
            ('"\\q"', "line 1: unknown escape \\q"),
            ("12x", "line 1: cannot read '12x'"),
            ("1" * 5000, "line 1: an integer of 5000 digits"),
            ("{:a 1 :b 2\n:a 1}", "line 1: a map has a key twice"),
            ("[" * 200, "line 1: more than 100 levels of nesting"),
        ):
            with self.assertRaisesRegex(EdnError, re.escape(problem)):
                list(read_forms(text))


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir(parents=True)

    def file(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def run_main(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments)

    def test_all_linearizable(self) -> None:
        good = self.file("good", KV)
        result = self.run_main("--format", "kv", good, good)
        self.assertEqual((result.exit_code, result.stdout), (0, f"{good}: linearizable\n" * 2))
        self.assertEqual(result.stderr, "")

    def test_one_is_not(self) -> None:
        """The verdict goes to standard output alone, and the reason to standard error."""
        good, bad = self.file("good", KV), self.file("bad", KV.replace('"xy"', '"yx"'))
        result = self.run_main("--format", "kv", bad, good)
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(result.stdout, f"{bad}: not linearizable\n{good}: linearizable\n")
        self.assertIn("get → 'yx'", result.stderr)
        self.assertEqual(self.run_main("--format", "kv", "--no-explain", bad).stderr, "")

    def test_an_exhausted_budget_is_unknown(self) -> None:
        lines = []
        for kind in ("invoke", "ok"):
            lines += [f'{{:process {n} :type :{kind} :f :append :key "k" :value "{n},"}}' for n in range(12)]
        lines.append('{:process 0 :type :invoke :f :get :key "k" :value nil}')
        result_of_get = "".join(f"{n}," for n in reversed(range(12)))
        lines.append(f'{{:process 0 :type :ok :f :get :key "k" :value "{result_of_get}"}}')
        hard, bad = self.file("hard", "\n".join(lines)), self.file("bad", KV.replace('"xy"', '"yx"'))
        for limit in ("--budget", "--states"):
            result = self.run_main("--format", "kv", limit, "500", hard)
            self.assertEqual((result.exit_code, result.stdout), (3, f"{hard}: unknown\n"))
            self.assertIn("budget was exhausted", result.stderr)
        # A violation counts more.
        self.assertEqual(self.run_main("--format", "kv", "--budget", "500", hard, bad).exit_code, 1)

    def test_what_cannot_be_read(self) -> None:
        """The other files are still checked."""
        good, broken = self.file("good", KV), self.file("broken", KV + "{")
        missing = str(self.directory / "missing")
        result = self.run_main("--format", "kv", missing, broken, good, str(self.directory))
        self.assertEqual((result.exit_code, result.stdout), (2, f"{good}: linearizable\n"))
        self.assertIn(f"{missing}: No such file", result.stderr)
        self.assertIn(f"{broken}:9: the text ends", result.stderr)
        self.assertIn("Is a directory", result.stderr)

    def test_wrong_usage(self) -> None:
        good = self.file("good", KNOSSOS)
        for arguments in (
            (good,),
            ("--format", "kv"),
            ("--format", "edn", good),
            ("--format", "knossos", "--budget", "0", good),
            ("--format", "knossos", "--initial", "[", good),
            ("--format", "knossos", "--initial", "1 2", good),
            ("--format", "knossos", "--initial", "{}", good),
        ):
            result = self.run_main(*arguments)
            self.assertEqual(result.exit_code, 2, arguments)
            self.assertEqual(result.stdout, "")
            self.assertIn("Error", result.stderr)

    def test_the_initial_value(self) -> None:
        """None by default; a number for Knossos, any text for kv."""
        read = "{:process 0 :type :invoke :f :read :value nil}\n{:process 0 :type :ok :f :read :value %s}\n"
        five, none = self.file("five", read % "5"), self.file("none", read % "nil")
        self.assertEqual(self.run_main("--format", "knossos", "--initial", "5", five).exit_code, 0)
        self.assertEqual(self.run_main("--format", "knossos", five).exit_code, 1)
        self.assertEqual(self.run_main("--format", "knossos", none).exit_code, 0)
        self.assertEqual(self.run_main("--format", "knossos", "--initial", "5", none).exit_code, 1)
        kv = self.file("kv", KV.replace('""', '"old text"'))
        self.assertEqual(self.run_main("--format", "kv", "--initial", "old text", kv).exit_code, 0)
        self.assertEqual(self.run_main("--format", "kv", kv).exit_code, 1)

    def test_the_page(self) -> None:
        """One page for all files that are not linearizable; none if all are."""
        good, bad = self.file("good", KV), self.file("bad<1>", KV.replace('"xy"', '"yx"'))
        page = self.directory / "page.html"
        self.assertEqual(self.run_main("--format", "kv", "--html", str(page), good).exit_code, 0)
        self.assertFalse(page.exists())
        result = self.run_main("--format", "kv", "--html", str(page), bad, good, bad)
        self.assertEqual(result.exit_code, 1)
        text = page.read_text(encoding="utf-8")
        self.assertEqual(text.count("<svg"), 2)
        self.assertIn("bad&lt;1&gt;</h2>", text)
        nowhere = self.run_main("--format", "kv", "--html", str(self.directory / "no" / "page"), bad)
        self.assertEqual(nowhere.exit_code, 1)
        self.assertIn("No such file", nowhere.stderr)

    def test_as_a_program(self) -> None:
        bad = self.file("bad", JEPSEN.replace("[3 1]", "[9 1]").replace(":fail   :cas", ":ok     :cas"))
        done = subprocess.run(
            [sys.executable, "-m", "zlayer_consensus.testing.check_history", "--format", "jepsen", bad],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout), (1, f"{bad}: not linearizable\n"), done.stderr)
