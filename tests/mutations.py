"""Bytes as accidents leave them, and how many of them to try."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

NONSENSE = [b"", b"null", b"[]", b"{}", b"7", b'"text"', b"NaN", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"a: [", b"- 1\n"]
"""Contents that no reader expects."""


def examples(few):
    """So many examples, or as many as the profile "thorough" asks for (pytest --hypothesis-profile thorough)."""
    asked = settings.default.max_examples
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=asked if asked > 100 else few, deadline=None, suppress_health_check=slow)


def mutated(content):
    """Cut off, with bytes changed, put in or taken out, or something else altogether."""
    place = st.integers(0, len(content))
    cut = place.map(lambda at: content[:at])
    changed = st.builds(lambda at, byte: content[:at] + bytes([byte]) + content[at + 1 :], place, st.integers(0, 255))
    longer = st.builds(lambda at, more: content[:at] + more + content[at:], place, st.binary(min_size=1, max_size=20))
    shorter = st.builds(lambda at, gone: content[:at] + content[at + gone :], place, st.integers(1, 200))
    return st.one_of(cut, changed, longer, shorter, st.sampled_from(NONSENSE), st.binary(max_size=200))


def json_values():
    """Whatever JSON can say."""
    numbers = st.one_of(st.integers(-(2**40), 2**40), st.floats(), st.sampled_from([10**400, -1, 0, 1e308]))
    leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    )


def replaced(document, value, draw):
    """Put a value somewhere into a JSON document, or take something out of it; return where."""
    holder, path = document, []
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = draw(st.sampled_from(keys))
        path.append(key)
        inner = holder[key]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 4)):
            holder = inner
            continue
        if draw(st.booleans()):
            holder[key] = value
        else:
            del holder[key]
        return path
