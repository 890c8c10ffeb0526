"""What Python modules bind, import and read, a piece at a time: projects share most pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from symtable import Symbol, SymbolTable, symtable


@dataclass(frozen=True)
class Names:
    """What a piece of a module binds, imports and reads at module level, and imports inside in vain."""

    bound: frozenset[str]
    imported: frozenset[str]
    read: frozenset[str]
    unused_inside: frozenset[str]


def scopes(table: SymbolTable) -> Iterator[SymbolTable]:
    yield table
    for child in table.get_children():
        yield from scopes(child)


@lru_cache(maxsize=16384)
def names_of_piece(source: str) -> Names:
    module = symtable(source, "<rendered>", "exec")
    bound, imported, read, unused = set[str](), set[str](), set[str](), set[str]()
    for scope in scopes(module):
        here = set[str]()  # imported inside of a function
        for symbol in scope.get_symbols():
            name = symbol.get_name()
            if scope is module:
                if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
                    bound.add(name)
                if symbol.is_imported():
                    imported.add(name)
            elif symbol.is_declared_global() and symbol.is_assigned():
                bound.add(name)
            elif symbol.is_imported() and not symbol.is_referenced():
                here.add(name)
            if symbol.is_referenced() and (scope is module or symbol.is_global()):
                read.add(name)
        if here:
            inner = {
                s.get_name() for child in scope.get_children() for s in all_symbols(child) if s.is_free()
            }
            unused |= here - inner
    return Names(*map(frozenset, (bound, imported, read, unused)))


def all_symbols(table: SymbolTable) -> Iterator[Symbol]:
    for scope in scopes(table):
        yield from scope.get_symbols()


@lru_cache(maxsize=4096)
def names_of(source: str) -> Names:
    """The names of a module, whose pieces stand between two empty lines; an error if it is no Python."""
    try:
        pieces = [names_of_piece(piece) for piece in source.split("\n\n\n")]
    except SyntaxError:  # or there are two empty lines inside of a string
        pieces = [names_of_piece(source)]
    return Names(
        frozenset[str]().union(*(piece.bound for piece in pieces)),
        frozenset[str]().union(*(piece.imported for piece in pieces)),
        frozenset[str]().union(*(piece.read for piece in pieces)),
        frozenset[str]().union(*(piece.unused_inside for piece in pieces)),
    )
