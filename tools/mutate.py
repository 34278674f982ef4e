"""Removes every barrier and every bounds check from the CUDA kernels, one at a time, and demands that a test fails.

    python tools/mutate.py [--op OP ...] [--jobs N] [--write FILE]

tests/simulated/README.md says what is removed. All mutants of an operator are compiled into one driver: each place asks
at run time whether it is the one that is removed. Exit status 1 if one was not caught, or was in spite of an exemption.
"""

import argparse
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "ops"))

from simulated.harness import BUILD, CSRC, OPERATORS, VARIANTS, Harness, build, kernel_file, overlay_path
from tqdm import tqdm

from refinedet.files import write_text

SOURCES = sorted([*CSRC.glob("cuda/*.h"), *CSRC.glob("ops/*/*_cuda.*")], key=lambda path: path.name)
OVERLAY = BUILD / "mutants"
UNCHANGED = 0
SECONDS_AT_LEAST = 5  # of processor time before a mutant counts as endless; more where the unchanged kernel needs more

HEADER = """\
#pragma once
#include <cstdio>
#include <cstdlib>
namespace mutation {
inline const int active = std::atoi(std::getenv("REFINEDET_MUTANT"));

// Which questions were asked, for the file that the environment names.
inline struct Record {
  bool asked[COUNT];
  ~Record() {
    const char* const name = std::getenv("REFINEDET_ASKED");
    if (name == nullptr) return;
    std::FILE* const file = std::fopen(name, "wb");
    std::fwrite(asked, 1, COUNT, file);
    std::fclose(file);
  }
} record{};

inline bool is(int number) {
  __atomic_store_n(&record.asked[number], true, __ATOMIC_RELAXED);
  return active == number;
}
template <class T>
T mutable_min(int number, T a, T b) {
  return is(number) ? a : is(number + 1) ? b : b < a ? b : a;
}
}  // namespace mutation
"""

Check = Callable[[Harness], None]


@dataclass
class Mutant:
    """Something that can be removed from a kernel."""

    number: int
    file: str  # its name
    function: str
    kind: str  # "barrier" or "bounds"
    code: str  # that goes
    becomes: str
    exempt: str | None = None  # why no test can notice
    reached: bool = False  # by some check
    caught_by: str | None = None

    @property
    def as_it_should_be(self) -> bool:
        """Caught, or exempt and indeed not caught."""
        return (self.caught_by is None) == (self.exempt is not None)


# --- Finding ----------------------------------------------------------------------------------------------------------

COMMENT_OR_STRING = re.compile(r"//[^\n]*|/\*[\s\S]*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'")
BARRIER = re.compile(r"\b__sync(?:warp|threads(?P<vote>_count|_and|_or)?)\s*\(")
COMPARISON = re.compile(r"(?<=\s)[<>]=?(?=\s)")
MINIMUM = re.compile(r"\bmin\s*\(")
EXEMPTION = re.compile(r"//\s*only saves work:\s*(\S.*)")
CLOSING = {"(": ")", "[": "]", "{": "}"}
OPENING = {closing: opening for opening, closing in CLOSING.items()}

# What ends an operand of a comparison outside of brackets: whatever binds less tightly.
END_OF_OPERAND = re.compile(r"&&|\|\||[=!]=|[-+*/%&|^]=|=|[;,?]|(?<!:):(?!:)|(?<![&])&(?!&)|\||\^|\breturn\b")


def blank_comments(text: str) -> str:
    """The same text with spaces for comments and strings, so that positions stay."""
    return COMMENT_OR_STRING.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def matching(text: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in CLOSING) - (text[i] in OPENING)
        if depth == 0:
            return i
    raise ValueError(f"no closing bracket for {text[start : start + 40]!r}")


def device_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of the body of every __global__ or __device__ function in a text without comments."""
    end = 0
    for marker in re.finditer(r"\b__(?:global|device)__\b", text):
        if marker.start() < end:  # __host__ __device__ of one function
            continue
        i = marker.end()
        while text[i] not in "{;":
            i = matching(text, i) + 1 if text[i] in "([" else i + 1
        signature = re.sub(r"__launch_bounds__\s*\([^)]*\)|__\w+__", "", text[marker.end() : i])
        name = re.search(r"(operator\s*\(\)|\w+)\s*\(", signature)
        if text[i] == "{" and name:
            end = matching(text, i)
            yield name.group(1), i, end


def operand_begin(text: str, operator: int) -> int:
    """Where the left operand of the comparison at `operator` begins."""
    depth = 0
    for i in range(operator - 1, -1, -1):
        character = text[i]
        if character in OPENING and (character != "}" or depth > 0 or is_value(text, i)):
            depth += 1
        elif character in CLOSING and depth > 0:
            depth -= 1
        elif depth == 0 and (character in "([{}" or END_OF_OPERAND.match(text, i)):
            word = END_OF_OPERAND.match(text, i)
            begin = word.end() if word else i + 1
            return begin + len(text[begin:operator]) - len(text[begin:operator].lstrip())
    raise ValueError("a comparison without a left operand")


def is_value(text: str, closing: int) -> bool:
    """Whether the brace at `closing` ends an initialised value, like int64_t{x}, and not a block of statements."""
    depth = 0
    for i in range(closing, -1, -1):
        depth += (text[i] in OPENING) - (text[i] in CLOSING)
        if depth == 0:
            return i > 0 and (text[i - 1].isalnum() or text[i - 1] in "_>")
    return False


def operand_end(text: str, operator: int) -> int:
    """Where the right operand of the comparison that ends before `operator` ends."""
    i = operator
    while True:
        if text[i] in CLOSING:
            i = matching(text, i)
        elif text[i] in OPENING or END_OF_OPERAND.match(text, i):
            return len(text[:i].rstrip())
        i += 1


def comma_after(text: str, place: int) -> int:
    """The comma that ends the argument which begins at `place`."""
    while text[place] != ",":
        place = matching(text, place) + 1 if text[place] in CLOSING else place + 1
    return place


@dataclass
class Edits:
    """Insertions into a text, by positions in the original."""

    text: str
    before: dict[int, str] = field(default_factory=dict)
    after: dict[int, str] = field(default_factory=dict)

    def surround(self, begin: int, end: int, left: str, right: str) -> None:
        """Outside of what was put around the same text before."""
        self.before[begin] = left + self.before.get(begin, "")
        self.after[end] = self.after.get(end, "") + right

    def prefix(self, place: int, left: str) -> None:
        """Inside of what was put around the text that begins here."""
        self.before[place] = self.before.get(place, "") + left

    def apply(self) -> str:
        pieces, last = [], 0
        for place in sorted({*self.before, *self.after}):
            pieces += [self.text[last:place], self.after.get(place, ""), self.before.get(place, "")]
            last = place
        return "".join([*pieces, self.text[last:]])


def line_at(text: str, place: int) -> str:
    begin = text.rfind("\n", 0, place) + 1
    return text[begin : (text + "\n").index("\n", place)]


def squeeze(code: str) -> str:
    return " ".join(code.split())


def instrument(text: str, file: str, first: int) -> tuple[str, list[Mutant]]:
    """The text with a question at everything that can be removed, and the list of that, numbered from `first`."""
    clean = blank_comments(text)
    edits = Edits(text)
    mutants: list[Mutant] = []

    def add(function: str, kind: str, place: int, code: str, becomes: str) -> int:
        exemption = EXEMPTION.search(line_at(text, place)) if kind == "bounds" else None
        reason = exemption.group(1).strip() if exemption else None
        mutants.append(Mutant(first + len(mutants), file, function, kind, squeeze(code), squeeze(becomes), reason))
        return mutants[-1].number

    def in_code(pattern: re.Pattern[str], begin: int, end: int) -> Iterator[re.Match[str]]:
        for found in pattern.finditer(clean, begin, end):
            if not re.search(r"\b(?:constexpr|static_assert)\b", line_at(clean, found.start())):
                yield found

    for function, begin, end in device_functions(clean):
        for found in in_code(BARRIER, begin, end):
            after = matching(clean, found.end() - 1) + 1
            vote = clean[found.end() : after - 1] if found["vote"] else ""
            number = add(function, "barrier", found.start(), clean[found.start() : after], vote or "nothing")
            removed = f"static_cast<int>(bool({vote}))" if vote else "void()"
            edits.surround(found.start(), after, f"(::mutation::is({number}) ? {removed} : ", ")")
        for found in in_code(COMPARISON, begin, end):
            left, right = operand_begin(clean, found.start()), operand_end(clean, found.end())
            inside = found.group()[0] == "<"
            number = add(function, "bounds", found.start(), clean[left:right], "true" if inside else "false")
            question = f"::mutation::is({number}) ||" if inside else f"!::mutation::is({number}) &&"
            edits.surround(left, right, f"({question} (", "))")
        for found in in_code(MINIMUM, begin, end):
            comma, close = comma_after(clean, found.end()), matching(clean, found.end() - 1)
            code = clean[found.start() : close + 1]
            number = add(function, "bounds", found.start(), code, clean[found.end() : comma])
            add(function, "bounds", found.start(), code, clean[comma + 1 : close])
            edits.prefix(found.start(), "::mutation::mutable_")
            edits.surround(found.end(), close, f"{number}, ", "")
    return edits.apply(), mutants


def write_overlay(sources: Iterable[Path], overlay: Path) -> list[Mutant]:
    """Writes the instrumented sources below `overlay`, by their paths below csrc/; returns all that can be removed."""
    mutants: list[Mutant] = []
    for source in sources:
        text, found = instrument(source.read_text(), source.name, first=UNCHANGED + 1 + len(mutants))
        write_if_changed(overlay / overlay_path(source), f'#include "mutation.h"\n#line 1\n{text}')
        mutants += found
    write_if_changed(overlay / "mutation.h", HEADER.replace("COUNT", str(UNCHANGED + 1 + len(mutants))))
    return mutants


def write_if_changed(file: Path, text: str) -> None:
    """Nothing is compiled again for an unchanged file."""
    if not file.exists() or file.read_text() != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


# --- Judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    name: str
    check: Check
    files: frozenset[str]  # names of those that it is compiled from

    @classmethod
    def named(cls, name: str) -> "Operator":
        module = importlib.import_module(f"test_{name}")
        return cls(name, module.check, frozenset(included_files(kernel_file(name))))


def included_files(source: Path) -> set[str]:
    names, waiting = set(), [source]
    while waiting:
        file = waiting.pop()
        if file.exists() and file.name not in names:
            names.add(file.name)
            waiting += [CSRC / name for name in re.findall(r'#include "([^"]+)"', file.read_text())]
    return names


@dataclass(frozen=True)
class Judge:
    """The check of an operator in one variant."""

    operator: Operator
    variant: str
    driver: Path
    seconds: int = 600
    reached: frozenset[int] = frozenset()  # mutants that the check runs into

    def reason_to_reject(self, number: int, **environment: str) -> str | None:
        """What the check says of a mutant; None if it is content."""
        environment["REFINEDET_MUTANT"] = str(number)
        name, driver = self.operator.name, self.driver
        with Harness(name, self.variant, driver=driver, environment=environment, timeout=self.seconds) as harness:
            try:
                self.operator.check(harness)
            except Exception as error:  # a kernel's garbage may make the check, or the driver, stumble anywhere
                return f"{type(error).__name__}: {error}"
        return None


def trial(operator: Operator, variant: str, overlay: Path) -> Judge:
    """A judge that has accepted the unchanged kernels, and knows how long that takes and which mutants it meets."""
    judge = Judge(operator, variant, build(operator.name, variant, overlay=overlay))
    record = judge.driver.with_suffix(".asked")
    begin = time.perf_counter()
    reason = judge.reason_to_reject(UNCHANGED, REFINEDET_ASKED=str(record))
    if reason is not None:
        raise SystemExit(f"{operator.name} fails unchanged, {variant}:\n{reason}")
    seconds = max(SECONDS_AT_LEAST, round(3 * (time.perf_counter() - begin)))
    reached = frozenset(number for number, asked in enumerate(record.read_bytes()) if asked)
    return replace(judge, seconds=seconds, reached=reached)


def judge(mutant: Mutant, judges: Sequence[Judge]) -> None:
    """Notes who catches the mutant first."""
    for one in judges:
        if mutant.number in one.reached:
            mutant.reached = True
            if one.reason_to_reject(mutant.number) is not None:
                mutant.caught_by = f"{one.operator.name}, {one.variant}"
                return


def judge_all(mutants: Sequence[Mutant], operators: Sequence[Operator], overlay: Path, jobs: int) -> None:
    tasks = [(operator, variant, overlay) for variant in VARIANTS for operator in operators]
    with ThreadPoolExecutor(jobs) as pool:
        judges = list(tqdm(pool.map(lambda task: trial(*task), tasks), "unchanged", len(tasks)))
        list(tqdm(pool.map(lambda mutant: judge(mutant, judges), mutants), "mutants", len(mutants)))


# --- Reporting --------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Mutations of the CUDA kernels

Written by `tools/mutate.py --write`: what happens when one barrier or one bounds check is removed from the
kernels (`tests/simulated/README.md` says how). "Caught by" names the operator whose quick cases fail and the first
variant of the harness in which they do: plain, with AddressSanitizer and UBSan, or with ThreadSanitizer.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code_span(code: str) -> str:
    return f"`{code}`".replace("|", "\\|")


def verdict(mutant: Mutant) -> str:
    if mutant.exempt:
        return f"exempt: {mutant.exempt}" + (f" (**yet caught**: {mutant.caught_by})" if mutant.caught_by else "")
    return mutant.caught_by or ("**NOT caught**" if mutant.reached else "**NOT reached**")


def share_caught(mutants: Collection[Mutant]) -> str:
    judged = [mutant for mutant in mutants if not mutant.exempt]
    return f"{sum(mutant.caught_by is not None for mutant in judged)} of {len(judged)}" if judged else ""


def report(mutants: Sequence[Mutant]) -> str:
    functions: dict[tuple[str, str], list[Mutant]] = {}
    for mutant in mutants:
        functions.setdefault((mutant.file, mutant.function), []).append(mutant)

    def summary(members: list[Mutant]) -> list[str]:
        kinds = [[mutant for mutant in members if mutant.kind == kind] for kind in ("barrier", "bounds")]
        return [*map(share_caught, kinds), str(sum(mutant.exempt is not None for mutant in members) or "")]

    header = ["file", "function", "barriers caught", "bounds caught", "exempt"]
    rows = [[file, code_span(function), *summary(members)] for (file, function), members in functions.items()]
    parts = [INTRODUCTION, table(header, [*rows, ["all", "", *summary(list(mutants))]])]
    for (file, function), members in functions.items():
        rows = [[code_span(mutant.code), code_span(mutant.becomes), verdict(mutant)] for mutant in members]
        parts += [f"\n## {function} ({file})\n", table(["removed", "becomes", "caught by"], rows)]
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Removes barriers and bounds checks from the CUDA kernels.")
    either = parser.add_mutually_exclusive_group()  # the table is of all operators
    either.add_argument("--op", action="append", choices=OPERATORS, help="only what this operator is compiled from")
    either.add_argument("--write", type=Path, metavar="FILE", help="write the table to this file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    arguments = parser.parse_args()

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before a check imports torch
    operators = [Operator.named(name) for name in arguments.op or OPERATORS]
    mutants = write_overlay(SOURCES, OVERLAY)
    used = set().union(*(operator.files for operator in operators))
    mutants = [mutant for mutant in mutants if mutant.file in used]
    judge_all(mutants, operators, OVERLAY, arguments.jobs)
    text = report(mutants)
    print(text)
    if arguments.write:
        write_text(arguments.write, text)
    return int(not all(mutant.as_it_should_be for mutant in mutants))


if __name__ == "__main__":
    sys.exit(main())
