"""TensorFlow's op types that don't run here: the reasons, one by one or by family.

Graphs that contain them can be stored, given back, and differentiated elsewhere; running one raises UnsupportedOp.
"""

from __future__ import annotations

import re

from gradserve.errors import UnsupportedOp
from gradserve.graph.graph import Node

_FILES = "it reads or writes files, and files on the server are no client's business: feed the data instead"
_QUEUES = "it belongs to TensorFlow 1's input queues: feed the data instead"
_PYTHON = "it calls a Python function of the process that made the graph, which is not part of the graph"
_HANDLES = "it keeps tensors in a TensorFlow session between runs: keep them in variables of a session here"
_COLLECTIVE = "it moves tensors between the devices of one TensorFlow program: placement and shards do that here"
_TPU = "it exists only inside a program that TensorFlow compiles for TPUs"
_MESH = "it spreads a tensor over a DTensor mesh: placement does that here"
_DEBUGGER = "it belongs to TensorFlow's debugger: find_nonfinite names the first op that went wrong"
_PROTOCOL_BUFFERS = "it needs the descriptors of protocol buffers that are not part of the graph"
_SDCA = "it is a training algorithm with state of its own for linear models: use the optimisers of a session"
_NO_OP = "TensorFlow registers the name, but has no such op"

REASONS: dict[str, str] = {
    name: why
    for why, names in (
        (
            _FILES,
            "FixedLengthRecordReader GenerateVocabRemapping IdentityReader InitializeTableFromTextFile"
            " InitializeTableFromTextFileV2 LMDBReader LoadAndRemapMatrix ReaderNumRecordsProduced"
            " ReaderNumWorkUnitsCompleted ReaderRead ReaderReadUpTo ReaderReset ReaderRestoreState"
            " ReaderSerializeState ReduceDataset TFRecordReader TextLineReader WholeFileReader",
        ),
        (
            _QUEUES,
            "Queue QueueClose QueueDequeue QueueDequeueMany QueueDequeueUpTo QueueEnqueue QueueEnqueueMany QueueSize",
        ),
        (_PYTHON, "EagerPyFunc PyFunc PyFuncStateless"),
        (_HANDLES, "DeleteSessionTensor GetSessionHandle GetSessionHandleV2 GetSessionTensor"),
        (_COLLECTIVE, "NcclAllReduce NcclBroadcast NcclReduce"),
        (
            _TPU,
            "AllToAll CollectivePermute CrossReplicaSum TPUEmbeddingActivations TPUReplicatedInput XlaClusterOutput"
            " XlaSpmdFullToShardShape XlaSpmdShardToFullShape XlaVariadicReduce",
        ),
        (_MESH, "CopyToMesh CopyToMeshGrad Relayout RelayoutLike"),
        (_DEBUGGER, "DebugGradientRefIdentity"),
        (_PROTOCOL_BUFFERS, "DecodeProtoV2 EncodeProto"),
        (_SDCA, "SdcaFprint SdcaOptimizer SdcaOptimizerV2 SdcaShrinkL1"),
        (_NO_OP, "ScatterNdDiv ScatterNdMul StatelessRandomShuffle"),
        ("its value is a constant of TensorFlow's eager mode, in which there is no graph", "_EagerConst"),
        (
            "it belongs to TensorFlow's microphone front end, in fixed-point arithmetic of its own",
            "AudioMicrofrontend",
        ),
        (
            "it proposes boxes for one family of detectors: compose it of TopKV2 and NonMaxSuppressionV3",
            "GenerateBoundingBoxProposals",
        ),
    )
    for name in names.split()
}
"""Op type to the reason why it does not run here."""


_PIPELINES = "it belongs to tf.data's input pipelines: feed what the iterator gives in place of the iterator's output"
_CHECKPOINTS = (
    "it reads or writes TensorFlow's checkpoints, which are files: assign the values to a session's variables instead"
)
_PICTURES = "it reads or writes pictures and sounds: decode them beside the client, and feed or fetch the numbers"
_INTEGERS = (
    "it computes in the integers of TensorFlow's kernels for phones and some processors: send the graph in floats, or"
    " put Dequantize before it"
)
_REPLICAS = "it gathers the gradients of TensorFlow 1's replicas: ask for gradients with shards instead"
_TREES = "its trees are kept in a resource of TensorFlow's own: serve them with a library of trees"
_EVENTS = "it writes events to a file of the server: fetch the summary, and write it beside the client"

FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("input pipelines", r".*Dataset.*|.*Iterator.*|.*SeedGenerator|.*MemoryCache|.*StatsAggregator.*"
     r"|.*ThreadPoolHandle|(C|Unc)ompressElement|GetOptions|MapDefun|WindowOp|ComputeBatchSize", _PIPELINES),
    ("programs for TPUs", r".*TPU.*|.*Xla.*|(In|Out)feed(De|En)queue.*|.*SparseCore.*|.*PhysicalReplica|Prelinearize.*"
     r"|ConvertToCooTensor|StoreMinibatchStatistics.*|GlobalIterId", _TPU),
    ("gathered gradients", r".*Accumulator.*", _REPLICAS),
    ("between devices", r"Collective.*|Send|Recv|Nccl.*", _COLLECTIVE),
    ("queues and stages", r".*Queue.*|RecordInput|Barrier.*|(Ordered)?(Map)?(Uns|S)tage.*"
     r"|(Ordered)?Map(Clear|Peek|Size|IncompleteSize|UnstageNoKey)|Batch(Function)?|Unbatch(Grad)?", _QUEUES),
    ("checkpoints", r"Save.*|Restore.*|MergeV2Checkpoints|DistributedSave|Sharded.*|DisableCopyOnRead", _CHECKPOINTS),
    ("events", r".*SummaryWriter|Write.*Summary|CreateSummary.*|ImportEvent", _EVENTS),
    ("files", r".*Reader.*|.*File.*|ImmutableConst", _FILES),
    ("pictures and sounds", r"(Decode|Encode).*(Jpeg|Png|Bmp|Gif|Image|Jxl|WebP|Wav)(VariableQuality)?|ExtractJpegShape",
     _PICTURES),
    ("integer arithmetic", r"Quantized.*|Requantiz.*|QuantizeDown.*|UniformQuantized.*|UniformRequantize", _INTEGERS),
    ("boosted trees", r"(Is)?BoostedTrees.*", _TREES),
    ("the debugger", r"Debug.*|Copy(Host)?", _DEBUGGER),
)  # fmt: skip
"""What a family of op types is, a pattern of their names, and the reason."""


def reason(kind: str) -> str | None:
    """Why an op type doesn't run here, where it is left out on purpose."""
    if kind in REASONS:
        return REASONS[kind]
    return next((why for _, pattern, why in FAMILIES if re.fullmatch(pattern, kind)), None)


def unsupported(node: Node) -> UnsupportedOp:
    """The error of a node that can't be run: why, where the op is left out on purpose."""
    why = reason(node.type)
    ending = f", because {why}." if why else ": no such op is known."
    return UnsupportedOp(f"{node.name}: the op {node.type} can't be run here{ending}", node=node.name, op=node.type)
