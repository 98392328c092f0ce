"""What a SavedModel would do besides computing, found in its graph before any of it runs.

A SavedModel is a program: loading it runs some of its operations, serving it runs others. What is here is a seat belt
and no sandbox. It keeps operations from running that are made to touch files, processes, Python or the network, but
those that remain are native code, which may have faults of its own. Load SavedModels of people that you trust.

The rule: an operation that TensorFlow declares stateful must be one of those listed here that only compute (variables,
random numbers, control flow, tables in memory), any other must not be one of those listed here that do more, and one
that TensorFlow does not know must be a function of the same graph. It holds for every node and every function, whether
anything calls it or not. The one exception is the saver that every SavedModel has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

# stateful operations that keep their state in memory
_COMPUTES = re.compile(
    r"Assert|Assign(Add|Sub)?VariableOp|ReadVariableOp|VarHandleOp|VarIsInitializedOp|Variable(V2|Shape)?"
    r"|TemporaryVariable|DestroyResourceOp|DisableCopyOnRead|GuaranteeConst|Empty|DeepCopy|CheckNumerics(V2)?"
    r"|Resource(Gather|GatherNd|StridedSliceAssign|CountUpTo|Scatter\w+|Apply\w+|SparseApply\w+)"
    r"|If|Case|While|StatefulPartitionedCall|TensorArray\w*|Stack(V2|PushV2|PopV2|CloseV2)?|CudnnRNN\w*"
    r"|Random(Crop|Gamma|Poisson(V2)?|Shuffle|StandardNormal|Uniform|UniformInt)|TruncatedNormal|Multinomial"
    r"|ParameterizedTruncatedNormal|Stateful(RandomBinomial|StandardNormal(V2)?|TruncatedNormal|Uniform\w*)"
    r"|StatelessRandomGetAlg|NonDeterministicInts|Rng(ReadAnd)?Skip|SampleDistortedBoundingBox(V2)?"
    r"|(Anonymous)?(Mutable|MutableDense)?HashTable(OfTensors)?(V2)?|LookupTable\w+|InitializeTableV2"
)
# operations that are not declared stateful, and yet read files, call Python, run other programs or end the process
_DOES_MORE = re.compile(
    r"\w*(File|Dataset|Proto|Snapshot|Iterator|Checkpoint)\w*|(Experimental|Debug|Py|Mlir|TPU|Tpu|Remote|Rpc|Infeed"
    r"|Outfeed|Collective|Xla(CustomCall|Launch|CallModule)|Reader|Queue|_)\w*|GenerateVocabRemapping|ImmutableConst"
    r"|LoadAndRemapMatrix|Copy|CopyHost|Abort"
)
_SAVES = {"SaveV2", "MergeV2Checkpoints", "ShardedFilename"}
_RESTORES = {"RestoreV2"}


def file_operations(saved_model, definition: Callable[[str], object | None]) -> list[str]:
    """Operations of a SavedModel that do more than compute, each with the function that it is in.

    Args:
        saved_model: The parsed `SavedModel` message.
        definition: Maps the name of an operation to its `OpDef`, or None where TensorFlow does not know it.

    Returns:
        Such as ["WriteFile in __inference_f_12"], sorted; empty for a SavedModel that only computes.
    """
    found = set()
    for graph in saved_model.meta_graphs:
        functions = {f.signature.name for f in graph.graph_def.library.function}
        exempt = _saver(graph)
        for place, node in _nodes(graph.graph_def):
            if node.op not in exempt.get(place, ()) and not _computes(node.op, definition, functions):
                found.add(f"{node.op} in {place or 'the graph'}")
    return sorted(found)


def _nodes(graph) -> Iterator[tuple[str, object]]:
    """Every node, with the name of the function that it is in; that of the graph itself is empty."""
    for node in graph.node:
        yield "", node
    for function in graph.library.function:
        for node in function.node_def:
            yield function.signature.name, node


def _computes(op: str, definition, functions: set[str]) -> bool:
    if _DOES_MORE.fullmatch(op):
        return False
    known = definition(op)
    if known is None:
        return op in functions  # whose own nodes are looked at
    return not known.is_stateful or bool(_COMPUTES.fullmatch(op))


def _saver(graph) -> dict[str, set[str]]:
    """The functions of the saver, and the operations on files that each may have.

    Only nodes that the saver names call them, and nothing else in the file has their names or takes what those nodes
    give: not a signature, an initializer, another function or an object.
    """
    saver, nodes = graph.saver_def, {node.name: node for node in graph.graph_def.node}
    named = {}
    for tensor, allowed in ((saver.save_tensor_name, _SAVES), (saver.restore_op_name, _RESTORES)):
        node = nodes.get(tensor.partition(":")[0])
        if node is not None and node.op == "StatefulPartitionedCall":
            named[node.name] = node.attr["f"].func.name, allowed
    functions = [function for function, _ in named.values()]
    if len(set(functions)) < len(functions):
        return {}
    rest = type(graph)()
    rest.CopyFrom(graph)
    rest.ClearField("saver_def")
    library, graph_def = rest.graph_def.library, rest.graph_def
    for kept, name in ((graph_def.node, lambda n: n.name), (library.function, lambda f: f.signature.name)):
        for i in reversed(range(len(kept))):
            if name(kept[i]) in (named if kept is graph_def.node else functions):
                del kept[i]
    used = {part.lstrip("^").partition(":")[0] for node in graph_def.node for part in node.input}
    for part in (*rest.signature_def.values(), *rest.collection_def.values()):
        used |= {text.lstrip("^").partition(":")[0] for text in _strings(part)}
    content = rest.SerializeToString()
    exempt = {}
    for node, (function, allowed) in named.items():
        if node not in used and function.encode() not in content:
            exempt[function] = allowed
    return exempt


def _strings(message) -> Iterator[str]:
    """All text in a message."""
    for field, value in message.ListFields():
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        several = list(value.values()) if is_map else value
        if not is_map and not hasattr(value, "append") and not hasattr(value, "add"):
            several = [value]
        for one in several:
            if isinstance(one, bytes):
                yield one.decode(errors="replace")
            elif isinstance(one, str):
                yield one
            elif hasattr(one, "ListFields"):
                yield from _strings(one)
