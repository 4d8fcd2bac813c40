"""What a fast lowering makes of a mask: parts in each of which the visible keys lie close together.

Skipping empty blocks saves nothing where every block has a few visible pairs, as with strided and fixed
patterns whose stride is not above the block's size. So a mask is split into parts that share no pair, and each
part gets an arrangement of queries and keys in which its pairs are dense:

    whole     rows as they are
    window    blocks of queries, each with the keys around it that a band shows
    local     every block of `stride` places is a row of its own (SameBlock, where positions are places)
    residue   places that are equal modulo `stride` are a row of their own: a strided column becomes causal attention
    summary   the keys that are summaries (Child et al. 2019, fixed pattern), gathered and packed together
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from gpt4jax.model.mask_algebra import And, Anywhere, Bounds, Mask, Not, Or, anywhere, atoms, transform
from gpt4jax.model.masks import Banded, Causal, Full, SameBlock, Strided, Summary

SPLIT_ABOVE = 512  # keys; in shorter rows a pattern's parts would cost more than they save
_MOST_CLAUSES = 64
MIN_WINDOW_BLOCK = 32


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a mask.

    Attributes:
        kind, stride: its arrangement.
        mask: the pairs that it shows, of positions, as far as the arrangement does not say so already.
        plan: what bounds them, of places in a row of the arrangement.
        offset: the place of a row's first query among its keys.
        skip: of residues: so many places before the first query, which is not a multiple of the stride.
        start: of local blocks: the place of their first key.
        count, indices: of summaries: how many a block has, and which, for each head (or one for all).
        room: of summaries: how many there can be.
        block: of a window: its queries; it begins `before` keys before the first and ends `after` after the last.
    """

    kind: str
    mask: Mask
    plan: Mask
    offset: int
    stride: int = 1
    skip: int = 0
    start: int = 0
    count: int = 0
    indices: tuple[int, ...] = ()
    room: int = 0
    block: int = 0
    before: int = 0
    after: int = 0


@dataclasses.dataclass(frozen=True)
class Compacted(Mask):
    """A query at place q sees no more of the gathered summaries than the whole blocks before it can hold.

    `exact`: and it sees all of these.
    """

    stride: int
    count: int
    exact: bool

    def bounds(self, q_start, q_end, k_start, k_end):
        some = k_start < self.count * ((q_end - 1) // self.stride)
        every = (k_end <= self.count * (q_start // self.stride)) & self.exact
        return Bounds(*np.broadcast_arrays(some, every))


def head_groups(of_heads: Sequence[Mask]) -> list[tuple[tuple[int, ...], Mask, tuple[int, ...]]]:
    """Heads that can be computed together, their mask, and the summary of each if they differ in that alone."""
    groups: dict[Mask, list[int]] = {}
    for head, mask in enumerate(of_heads):
        groups.setdefault(_without_index(mask), []).append(head)
    out: list[tuple[tuple[int, ...], Mask, tuple[int, ...]]] = []
    for common, heads in groups.items():
        summaries = [{atom for atom in atoms(of_heads[h]) if isinstance(atom, Summary)} for h in heads]
        parts = _groups(common)
        asked = [atom for clauses in parts.values() for c in clauses for atom in _literals(c)]
        # A part after that of the summaries leaves out what these show, and that is not the same for all heads.
        last = all(key[0] != "residue" for key in parts)
        if last and all(len(own) == 1 for own in summaries) and not any(isinstance(atom, Summary) for atom in asked):
            indices = tuple(atom.index for own in summaries for atom in own)
            out.append((tuple(heads), common, indices))
            continue
        for mask in dict.fromkeys(of_heads[h] for h in heads):
            out.append((tuple(h for h in heads if of_heads[h] == mask), mask, ()))
    return out


@lru_cache(maxsize=256)
def split(
    mask: Mask, indices: tuple[int, ...], plain: bool, offset: int, q_len: int, k_len: int, apart: bool = False
) -> tuple[Part, ...]:
    """The parts of a mask for q_len queries, from place `offset` on, and k_len keys.

    `plain` says that positions are places of the row; in packed rows they are not, and only what is known of
    distances bounds the pairs. `indices`: the summaries of each head, as `head_groups` has them.

    `apart`: the keys are those of a chunk of the row, and places are counted from its first; the queries need not be
    among them. Then the strides of a `plain` mask that knows blocks must divide the chunk's place.
    """
    if k_len <= SPLIT_ABOVE and not indices:
        return (Part("whole", mask, mask if plain else anywhere(mask), offset),)
    out: list[Part] = []
    earlier: list[Mask] = []
    for key, clauses in _groups(mask).items():
        shown = _or([_and(clause) for clause in clauses])
        own = _and([shown, *map(Not, earlier)])
        if key[0] == "residue":
            coarse = transform(own, partial(_coarse, key[1]))
            out.append(Part("residue", own, coarse, offset // key[1], key[1], offset % key[1]))
            shown = shown & Strided(key[1])
        elif key[0] == "summary":
            _, stride, count, index = key
            room = count * ((k_len - 1) // stride)
            if apart:  # those of the last block are seen by queries of other chunks
                room = count * (k_len // stride) + min(count, k_len % stride)
            if not room:
                continue  # there is no block before the last
            known = all(isinstance(atom, Causal) or atom == SameBlock(stride) for atom in atoms(own))
            exact = plain and known and bool(own(np.asarray(stride), np.asarray(0)))
            lost = apart and not plain  # is where blocks begin
            plan = Anywhere(Full()) if lost else Compacted(stride, count, exact)
            options = dict(count=count, indices=indices or (index,), room=room)
            out.append(Part("summary", own, plan, 0 if lost else offset, stride, **options))
            shown = shown & Summary(stride, count, index)
        else:
            out.append(_whole(own, clauses, plain, offset, q_len, k_len))
        earlier.append(shown)
    return tuple(out)


def _whole(mask: Mask, clauses: list[tuple[Mask, ...]], plain: bool, offset: int, q_len: int, k_len: int) -> Part:
    """Rows as they are, or in blocks or windows where the mask shows no others."""
    blocks = set.intersection(*({atom for atom in clause if isinstance(atom, SameBlock)} for clause in clauses))
    stride, end = min((atom.stride for atom in blocks), default=1), offset + q_len
    within = offset >= 0 and end <= k_len and offset % stride == 0 and (end == k_len or q_len % stride == 0)
    if plain and blocks and within:
        plan = transform(mask, lambda atom: _in_block(atom, stride))
        return Part("local", plan if _is_plan(plan) else mask, plan, 0, stride, start=offset)
    plan = mask if plain else anywhere(mask)
    low, high = plan.distances()
    if math.isfinite(low) and math.isfinite(high) and low <= high:
        before, after = int(high), int(-low)
        block = _window_block(before + after + 1)
        before += -(before + after + block) % 16  # products of matrices like that: 1.1 times as fast on a CPU
        if 2 * (before + after + block) < k_len:
            return Part("window", mask, plan, offset, block=block, before=before, after=after)
    return Part("whole", mask, plan, offset)


def without_windows(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts with whole rows instead of windows: for a lowering that skips every tile a band does not show."""
    kinds = {"window": "whole"}
    return tuple(
        dataclasses.replace(part, kind=kinds.get(part.kind, part.kind), block=0, before=0, after=0) for part in parts
    )


def _window_block(width: int) -> int:
    """Queries of a window for a band of `width` keys: few enough that most of what is computed is seen."""
    return min(128, max(MIN_WINDOW_BLOCK, 1 << (width // 2).bit_length()))


def _in_block(atom: Mask, stride: int) -> Mask:
    """Of places in a block of `stride`."""
    if atom == SameBlock(stride):
        return Full()
    return atom if atom.relative or (isinstance(atom, Summary) and atom.stride == stride) else Anywhere(Full())


def _is_plan(mask: Mask) -> bool:
    return not any(isinstance(atom, Anywhere) for atom in atoms(mask))


def _coarse(stride: int, atom: Mask) -> Mask:
    """Of places in a row of one residue: distances there are those in the row, divided by the stride."""
    if isinstance(atom, Banded):
        return Banded(-(-atom.window // stride))
    if isinstance(atom, Strided):
        return Strided(atom.stride // math.gcd(atom.stride, stride))
    return atom if atom.relative else Anywhere(Full())


def _place(clause: tuple[Mask, ...]) -> list[tuple[tuple, tuple[Mask, ...]]]:
    """The arrangements that take a clause, and what each still has to ask."""
    strides = [atom.stride for atom in clause if isinstance(atom, Strided) and atom.stride > 1]
    if strides:
        stride = max(strides)
        rest = tuple(a for a in clause if not (isinstance(a, Strided) and stride % a.stride == 0))
        return [(("residue", stride), rest)]
    summaries = [atom for atom in clause if isinstance(atom, Summary)]
    if summaries and _and(clause).causal:
        one = summaries[0]
        # Keys of the query's own block stay where they are: those gathered then lie in whole blocks before it.
        away = (*(atom for atom in clause if atom != one), Not(SameBlock(one.stride)))
        return [(("whole",), (*clause, SameBlock(one.stride))), (("summary", one.stride, one.count, one.index), away)]
    return [(("whole",), clause)]


def _groups(mask: Mask) -> dict[tuple, list[tuple[Mask, ...]]]:
    """What each arrangement shows, rows as they are first."""
    groups: dict[tuple, list[tuple[Mask, ...]]] = {}
    for clause in _clauses(mask):
        for key, rest in _place(clause):
            groups.setdefault(key, []).append(rest)
    return {key: _absorb(groups[key]) for key in sorted(groups, key=lambda key: key != ("whole",))}


def _clauses(mask: Mask) -> list[tuple[Mask, ...]]:
    """Conjunctions of atoms, and of atoms negated, which together are the mask; if they are too many, the mask."""
    return _absorb(_distribute(mask, False)) if _size(mask, False) <= _MOST_CLAUSES else [(mask,)]


def _distribute(mask: Mask, negated: bool) -> list[tuple[Mask, ...]]:
    if isinstance(mask, Not):
        return _distribute(mask.mask, not negated)
    if not isinstance(mask, And | Or):
        return [(Not(mask) if negated else mask,)]
    each = [_distribute(part, negated) for part in mask.parts]
    if isinstance(mask, Or) != negated:
        return [clause for clauses in each for clause in clauses]
    out: list[tuple[Mask, ...]] = [()]
    for clauses in each:
        out = [tuple(dict.fromkeys(a + b)) for a in out for b in clauses]
    return out


def _size(mask: Mask, negated: bool) -> int:
    if isinstance(mask, Not):
        return _size(mask.mask, not negated)
    if not isinstance(mask, And | Or):
        return 1
    each = [_size(part, negated) for part in mask.parts]
    return sum(each) if isinstance(mask, Or) != negated else math.prod(each)


def _absorb(clauses: list[tuple[Mask, ...]]) -> list[tuple[Mask, ...]]:
    """Without those that show nothing which another does not show."""
    clauses = list({frozenset(clause): clause for clause in clauses}.values())
    return [clause for clause in clauses if not any(set(other) < set(clause) for other in clauses)]


def _literals(clause: tuple[Mask, ...]) -> list[Mask]:
    return [atom for literal in clause for atom in atoms(literal)]


def _without_index(mask: Mask) -> Mask:
    return transform(mask, lambda atom: dataclasses.replace(atom, index=0) if isinstance(atom, Summary) else atom)


def _and(parts: Sequence[Mask]) -> Mask:
    return Full() if not parts else parts[0] if len(parts) == 1 else And(tuple(parts))


def _or(parts: Sequence[Mask]) -> Mask:
    return parts[0] if len(parts) == 1 else Or(tuple(parts))
