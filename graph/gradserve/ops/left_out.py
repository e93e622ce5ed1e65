"""TensorFlow's op types that have a gradient, or are registered as having none, and that don't run here: the reasons.

Graphs that contain them can be stored, given back, and differentiated elsewhere; running one raises UnsupportedOp.
"""

from __future__ import annotations

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


def unsupported(node: Node) -> UnsupportedOp:
    """The error of a node that can't be run: why, where the op is left out on purpose."""
    why = REASONS.get(node.type)
    ending = f", because {why}." if why else ": no such op is known."
    return UnsupportedOp(f"{node.name}: the op {node.type} can't be run here{ending}", node=node.name, op=node.type)
