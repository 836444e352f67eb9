"""The pass over a template's syntax tree that lets the sandbox see what the template makes.

Comes in: the tree that Jinja parsed. Goes out: the same tree, in which loops, macros, literals, joins and slices call
the sandbox's ``guard_`` methods, or SecurityError for what a chat template has no business with.
"""

from __future__ import annotations

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

REFUSED_NODES = (
    nodes.Block,
    nodes.Extends,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.ScopedEvalContextModifier,
)


def guarded(tree: nodes.Template) -> nodes.Template:
    """Rewrite ``tree``; SecurityError names the line of a statement that is refused."""
    for node in tree.find_all(REFUSED_NODES):
        raise SecurityError(f"line {node.lineno}: a chat template may not use {type(node).__name__.lower()}")
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            raise SecurityError(f"line {loop.lineno}: a chat template may not use a recursive loop")
    rewritten = GUARDS.visit(tree)
    assert isinstance(rewritten, nodes.Template)
    return rewritten


class _Guards(NodeTransformer):
    """Puts calls of the sandbox's ``guard_`` methods around nodes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _guard("guard_loop", node.iter)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_guard("guard_tick"), lineno=node.lineno))
        return node

    def visit_List(self, node: nodes.Literal) -> nodes.Node:
        self.generic_visit(node)
        return _guard("guard_value", node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self.visit_List(node) if node.ctx == "load" else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _guard("guard_concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _guard("guard_slice", node.node, *(bound or nodes.Const(None) for bound in bounds))


GUARDS = _Guards()


def _guard(method: str, *values: nodes.Node) -> nodes.Call:
    line = values[0].lineno if values else 0
    return nodes.Call(nodes.EnvironmentAttribute(method), [*values], [], None, None, lineno=line)
