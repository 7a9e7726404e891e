"""Semantic duplicates on embeddings that are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from infra.dataset import Dataset
from pipelines import semantic
from pipelines.corpus_facts import facts_of, load_rows
from pipelines.semantic import semantic_losers
from tests.helpers import commit_table
from tests.unit.pipelines.score_rows import RULE, row, source_id, table


def unit(vectors_ND: Any) -> Any:
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float16)


def groups(count: int, copies: int, spread: float, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return unit(np.repeat(rng.normal(size=(count, 32)), copies, axis=0) + spread * rng.normal(size=(count * copies, 32)))


def brute(vectors_ND: Any, order: list[int], similarity: float) -> dict[int, int]:
    kept: list[int] = []
    lost = {}
    for one in order:
        near = [other for other in kept if vectors_ND[one].astype(np.float32) @ vectors_ND[other].astype(np.float32) >= similarity]
        if near:
            lost[one] = near[0]
        else:
            kept.append(one)
    return lost


@pytest.mark.parametrize("block", [1024, 7])
def test_losers_are_those_of_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "BLOCK", block)
    vectors = groups(20, 5, 0.3)
    order = np.random.default_rng(1).permutation(100)
    found = dict(semantic_losers(vectors, order, 0.9))
    assert found == brute(vectors, order.tolist(), 0.9)
    assert found


def test_copies_fall_into_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "CLUSTER_ROWS", 40)
    vectors = groups(100, 4, 0.02)
    found = dict(semantic_losers(vectors, np.arange(400), 0.95))
    assert set(found.items()) <= set(brute(vectors, list(range(400)), 0.95).items())
    assert len(found) >= 290  # of 300


def test_what_is_no_cosine_is_told() -> None:
    with pytest.raises(ValueError, match="expected a cosine"):
        list(semantic_losers(groups(1, 1, 0), np.arange(1), 1.5))


def test_the_rule_takes_out_what_is_similar_and_leaves_what_was_not_measured(tmp_path: Any) -> None:
    one, other = groups(2, 1, 0)
    rows = [row("best", width=300) | {"embedding": one.tobytes()}, row("like it") | {"embedding": one.tobytes()},
            row("another") | {"embedding": other.tobytes()}, row("unknown")]
    dataset = Dataset(str(tmp_path / "ds"))
    snapshot = commit_table(dataset, "scores", [table(*rows[:2]), table(*rows[2:])])
    rule = replace(RULE, semantic=0.95)
    found = facts_of(load_rows(dataset, snapshot, rule), rule)
    assert found.duplicates == {"00000": {source_id("like it"): ["duplicate_semantic", rows[0]["image_id"]]}}
    assert facts_of(load_rows(dataset, snapshot, RULE), RULE).duplicates == {}
