"""suite.py run ADDRESS FILE [CASE…]     asks a server Autobahn's cases and writes what each came to
suite.py compare DIRECT THROUGH ADDRESS   fails if a case is worse through the gateway than direct; those that are so at
                                          first are asked once more, alone, for a busy machine is slow as well"""
import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient

# Framing, pings, reserved bits, opcodes, fragmentation, UTF-8, closing, and some of limits and compression: all of
# those are minutes of an echo server in Python.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.1.1", "9.1.2", "9.1.3", "9.2.1", "9.2.2", "9.2.3", "9.3.6",
         "9.3.7", "9.4.6", "9.4.7", "9.5.3", "9.6.3", "10.*", "12.1.1", "12.1.2", "12.1.3", "12.2.1", "12.3.1", "12.4.1",
         "12.5.1", "13.1.1", "13.2.1", "13.3.1", "13.4.1", "13.5.1", "13.6.1", "13.7.1"]
RANKS = {"OK": 0, "INFORMATIONAL": 0, "NON_STRICT": 1, "UNIMPLEMENTED": 2}
WORST = 3
AT_ONCE = 4


def ask(address, cases, at_once=AT_ONCE):
    try:
        results = asyncio.run(run_fuzzingclient(address, cases, None, concurrency=at_once))
    except FailureError as failure:
        results = failure.results
    word = lambda outcome: str(outcome).rpartition(".")[2]
    return {result.case_id: [word(result.behavior), word(result.behavior_close)] for result in results}


def rank(outcome):
    return [RANKS.get(word, WORST) for word in outcome]


def worse(direct, through):
    """A case that was not asked is worse than any."""
    nothing = ["nothing", "nothing"]
    return {case: (outcome, through.get(case, nothing)) for case, outcome in direct.items()
            if any(two > one for one, two in zip(rank(outcome), rank(through.get(case, nothing))))}


def main():
    if sys.argv[1] == "run":
        _, _, address, file, *cases = sys.argv
        results = ask(address, cases or CASES)
        with open(file, "w") as out:
            json.dump(results, out)
        good = sum(1 for outcome in results.values() if max(rank(outcome)) == 0)
        print(f"{len(results)} cases, {good} as they should be")
        return 0
    direct, through = (json.load(open(file)) for file in sys.argv[2:4])
    if len(direct) < 200:
        print(f"only {len(direct)} cases were asked")
        return 1
    suspects = worse(direct, through)
    if suspects and len(sys.argv) > 4:
        through |= ask(sys.argv[4], list(suspects), 1)
        suspects = worse(direct, through)
    for case, (one, two) in suspects.items():
        print(f"{case}: {' '.join(one)} direct, {' '.join(two)} through the gateway")
    print(f"{len(suspects)} of {len(direct)} cases are worse through the gateway")
    return 1 if suspects else 0


code = main()
sys.stdout.flush()
# The runner's own threads may abort at the end of the interpreter.
os._exit(code)
