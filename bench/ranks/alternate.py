#!/usr/bin/env python3
"""Takes several calibatt_ranks_bench in turns: other builds of the library, other numbers of GPUs, other models.

alternate.py OUTPUT.jsonl ROUNDS "NAME=COMMAND" … -- "NAME KIND GUIDANCE STEPS" …
All programs load first, and make each of their videos once in two steps. In each round every case runs once, in an order that changes direction from
round to round. Answers are appended to OUTPUT.jsonl; at the end come medians with the least and the most: of steps without each video's first, and of
self-attention in a step.
"""

import json
import statistics
import subprocess
import sys


class Program:
    def __init__(self, command):
        self.process = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        reply = json.loads(line) if line else {"error": "it ended"}
        if "error" in reply:
            sys.exit(f"{self.process.args}: {reply['error']}")
        return reply

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self.answer()


def spread(values):
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def main():
    if "--" not in sys.argv or len(sys.argv) < 6:
        sys.exit(__doc__)
    middle = sys.argv.index("--")
    output, rounds, cases = sys.argv[1], int(sys.argv[2]), [case.split(" ", 1) for case in sys.argv[middle + 1:]]
    programs = {name: Program(command) for name, command in (each.split("=", 1) for each in sys.argv[3:middle])}
    for name, request in cases:
        programs[name].ask(request.rsplit(" ", 1)[0] + " 2")  # Mochi's noise levels need two
    answers = {tuple(case): [] for case in cases}
    for number in range(rounds):
        for name, request in cases if number % 2 == 0 else cases[::-1]:
            reply = programs[name].ask(request) | {"program": name, "request": request, "round": number}
            answers[name, request].append(reply)
            with open(output, "a", encoding="utf-8") as file:
                file.write(json.dumps(reply) + "\n")
    for (name, request), replies in answers.items():
        steps = [seconds for reply in replies for seconds in reply["steps"][1:]]
        attention = [reply["attention"] / len(reply["steps"]) for reply in replies]
        print(f"{name} {request}: a step {spread(steps)} s, of it self-attention {spread(attention)} s")


if __name__ == "__main__":
    main()
