"""The ledger adds up under any outcomes; a content digest depends on values and row order, and on nothing else."""

from __future__ import annotations

import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.digest import content_digest, slice_digests
from infra.ledger import Ledger, Outcome

OUTCOMES = st.lists(st.builds(Outcome, st.text(max_size=5), st.sampled_from(["rejected", "failed"]), st.sampled_from(["a", "b", "c"])))
VALUES = {  # column -> (type, values)
    "text": (pa.string(), st.none() | st.text(max_size=8)),
    "number": (pa.int64(), st.none() | st.integers(-2**63, 2**63 - 1)),
    "real": (pa.float64(), st.floats(allow_nan=False)),
    "blob": (pa.binary(), st.none() | st.binary(max_size=8)),
    "flag": (pa.bool_(), st.booleans()),
    "many": (pa.list_(pa.string()), st.none() | st.lists(st.text(max_size=3), max_size=3)),
}
ROWS = st.lists(st.fixed_dictionaries({name: values for name, (_, values) in VALUES.items()}), min_size=1, max_size=8)
SCHEMA = pa.schema([(name, type_) for name, (type_, _) in VALUES.items()])


def table_of(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@given(accepted=st.integers(0, 100), outcomes=OUTCOMES)
def test_a_ledger_counts_every_outcome_once(accepted: int, outcomes: list[Outcome]) -> None:
    ledger = Ledger.of(accepted + len(outcomes), accepted, outcomes)
    assert sum(ledger.rejected.values()) == sum(o.status == "rejected" for o in outcomes)
    assert sum(ledger.failed.values()) == sum(o.status == "failed" for o in outcomes)
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))) == ledger


@given(accepted=st.integers(0, 100), outcomes=OUTCOMES, off=st.integers(-5, 5).filter(bool))
def test_a_row_too_many_or_too_few_is_refused(accepted: int, outcomes: list[Outcome], off: int) -> None:
    with pytest.raises(ValueError, match="does not add up"):
        Ledger.of(accepted + len(outcomes) + off, accepted, outcomes)


@given(shards=st.lists(st.tuples(st.integers(0, 9), OUTCOMES), max_size=6), data=st.data())
def test_the_sum_of_shards_is_the_ledger_of_the_job(shards: list[tuple[int, list[Outcome]]], data: st.DataObject) -> None:
    ledgers = [Ledger.of(accepted + len(outcomes), accepted, outcomes) for accepted, outcomes in shards]
    total = sum(data.draw(st.permutations(ledgers)), Ledger())
    total.check()
    every = [outcome for _, outcomes in shards for outcome in outcomes]
    accepted = sum(accepted for accepted, _ in shards)
    assert total == Ledger.of(accepted + len(every), accepted, every)


@given(rows=ROWS, data=st.data())
def test_chunks_columns_and_encodings_do_not_change_a_digest(rows: list[dict[str, object]], data: st.DataObject) -> None:
    table = table_of(rows)
    cut = data.draw(st.integers(0, len(rows)))
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    turned = chunked.select(data.draw(st.permutations(table.column_names)))
    sink = io.BytesIO()
    pq.write_table(turned, sink, compression=data.draw(st.sampled_from(["none", "zstd", "snappy"])), row_group_size=2,
                   use_dictionary=data.draw(st.booleans()))
    stored = pq.read_table(io.BytesIO(sink.getvalue()))
    assert content_digest(table) == content_digest(chunked) == content_digest(turned) == content_digest(stored)


@given(rows=ROWS, data=st.data())
def test_any_other_value_changes_the_digest(rows: list[dict[str, object]], data: st.DataObject) -> None:
    row, name = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(list(VALUES)))
    value = data.draw(VALUES[name][1])
    changed = [dict(one) for one in rows]
    changed[row][name] = value
    same = repr(value) == repr(rows[row][name])  # repr tells 0.0 from -0.0, as the digest does
    assert (content_digest(table_of(changed)) == content_digest(table_of(rows))) == same


@given(rows=ROWS, data=st.data())
def test_the_order_of_rows_is_content(rows: list[dict[str, object]], data: st.DataObject) -> None:
    other = data.draw(st.permutations(rows))
    same = [repr([row[name] for name in VALUES]) for row in other] == [repr([row[name] for name in VALUES]) for row in rows]
    assert (content_digest(table_of(other)) == content_digest(table_of(rows))) == same


@given(rows=ROWS)
def test_an_added_row_or_column_is_content_and_a_volatile_column_is_not(rows: list[dict[str, object]]) -> None:
    table = table_of(rows)
    digest = content_digest(table)
    assert content_digest(table_of([*rows, rows[-1]])) != digest
    assert content_digest(table.append_column("extra", pa.nulls(len(rows), pa.string()))) != digest
    assert content_digest(table.append_column("retrieved_at", pa.array(["now"] * len(rows)))) == digest


@given(rows=ROWS, size=st.integers(1, 9), cut=st.integers(0, 8))
def test_slices_have_the_digests_of_tables_of_their_own(rows: list[dict[str, object]], size: int, cut: int) -> None:
    plain = table_of(rows).select(["text", "number"]).append_column("nothing", pa.nulls(len(rows), pa.string()))
    chunked = pa.concat_tables([plain.slice(0, cut), plain.slice(cut)])
    expected = [content_digest(plain.slice(low, size)) for low in range(0, len(rows), size)]
    assert slice_digests(chunked, size) == slice_digests(plain, size) == expected


def test_neighbouring_values_cannot_be_confused() -> None:
    def one(*values: object) -> str:
        return content_digest(pa.table({"text": pa.array(values, pa.string())}))

    assert len({one("ab", "c"), one("a", "bc"), one("abc"), one("", "abc"), one("None", "x"), one(None, "x")}) == 6


def test_a_known_sha256_spares_hashing_and_gives_the_same_digest() -> None:
    values = [b"one", None, b"", b"two"]
    hashes = [None if value is None else hashlib.sha256(value).hexdigest() for value in values]
    table = pa.table({"bytes": pa.array(values, pa.binary()), "id": hashes})
    assert content_digest(table, sha256_of={"bytes": "id"}) == content_digest(table)
    assert content_digest(table, sha256_of={"bytes": "id"}) != content_digest(table.slice(0, 3))


def test_digests_stay_what_they_were() -> None:
    """Commits hold digests, and keys are made of them: a change here needs a reason and a note in docs/data.md."""
    table = pa.table({"image_id": ["a", "é"], "bytes": [b"\x00\xff", None], "x": [1.5, None], "n": pa.array([1, 2], pa.int32())})
    assert content_digest(table) == "3f470daea3cd4a565fce972a4dc882c13dbfd10cfe7a20307b51c20145d82be4"
