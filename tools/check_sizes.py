"""What a reader can take in: no source file is longer than 450 lines, no function longer than a screen, no line of documentation wider than 160.

Prints each breach as path:line: and exits 1 if there is one. A function's length is counted from its first line to the brace that ends it, in
formatted sources: what opens at the end of a line in column 0 (or in the body of a namespace or class) is closed by a brace of the same indent.
"""
import re
import subprocess
import sys

MAX_FILE, MAX_FUNCTION, MAX_DOC_COLUMNS = 450, 60, 160
NO_FUNCTION = re.compile(r"^\s*(namespace|class|struct|enum|union|extern|template|using|typedef|static_assert|\}|//|#|TEST|INSTANTIATE|EXPECT_|ASSERT_)")


def listed(*patterns):
    return subprocess.run(["git", "ls-files", *patterns], capture_output=True, text=True, check=True).stdout.split()


def functions(lines):
    """(first line, length) of each function definition, lines counted from 1."""
    head = None
    for number, line in enumerate(lines, 1):
        indent = len(line) - len(line.lstrip())
        if head is not None:
            if line.startswith(" " * head[1] + "}") and indent == head[1]:
                yield head[0], number - head[0] + 1
                head = None
            continue
        if not line.strip() or indent > 2 or NO_FUNCTION.match(line) or "(" not in line:
            continue
        # The head of a definition: from here to the line that ends in "{", without a statement's ";" before it.
        for following in range(number - 1, min(number + 8, len(lines))):
            text = lines[following].split("//")[0].rstrip()
            if text.endswith("{"):
                head = (number, indent)
                break
            if text.endswith((";", "}")) or not text:
                break


def main():
    breaches = []
    for path in listed("*.h", "*.cpp", "*.cu", "*.cuh"):
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        if len(lines) > MAX_FILE:
            breaches.append(f"{path}:{len(lines)}: {len(lines)} lines, at most {MAX_FILE}")
        for line, length in functions(lines):
            if length > MAX_FUNCTION:
                breaches.append(f"{path}:{line}: a function of {length} lines, at most {MAX_FUNCTION}")
        breaches += [f"{path}:{number}: #include by a path that goes around the floors" for number, line in enumerate(lines, 1)
                     if re.match(r'\s*#include "(\.\./|src/)', line)]
    for path in listed("*.md"):
        with open(path, encoding="utf-8") as file:
            breaches += [f"{path}:{number}: {len(line)} columns, at most {MAX_DOC_COLUMNS}" for number, line in enumerate(file.read().splitlines(), 1)
                         if len(line) > MAX_DOC_COLUMNS and not line.lstrip().startswith("|")]  # a row of a table cannot be wrapped
    print("\n".join(breaches) or "sizes: all within bounds")
    sys.exit(1 if breaches else 0)


main()
