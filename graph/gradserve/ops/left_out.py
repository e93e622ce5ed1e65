"""TensorFlow's op types that don't run here: the reasons, one by one or by family.

Graphs that contain them can be stored, given back, and differentiated elsewhere; running one raises UnsupportedOp.
"""

from __future__ import annotations

import re

from gradserve.errors import UnsupportedOp
from gradserve.graph.graph import Node

_FILES = "it reads or writes files, and files on the server are no client's business: feed the data instead"
_QUEUES = "it belongs to TensorFlow 1's input queues: feed the data instead, or what comes out of the queue"
_PYTHON = "it calls a Python function of the process that made the graph, which is not part of the graph"
_HANDLES = "it keeps tensors in a TensorFlow session between runs: keep them in variables of a session here"
_COLLECTIVE = "it moves tensors between the devices of one TensorFlow program: placement and shards do that here"
_TPU = "it exists only inside a program that TensorFlow compiles for TPUs"
_MESH = "it spreads a tensor over a DTensor mesh: placement does that here"
_DEBUGGER = "it belongs to TensorFlow's debugger: find_nonfinite names the first op that went wrong"
_PROTOCOL_BUFFERS = "it needs the descriptors of protocol buffers that are not part of the graph"
_SDCA = "it is a training algorithm with state of its own for linear models: use the optimisers of a session"
_NO_OP = "TensorFlow registers the name, but has no such op"
_CUDNN = (
    "it belongs to cuDNN's recurrent networks on a GPU: ask for the gradients of CudnnRNN, which runs here, instead"
)
_WEIGHTS = "it rearranges the weights of cuDNN for a checkpoint: give CudnnRNN its params as they are"
_LEARNED = "its kernel learns the classes' chances from step to step: use FixedUnigramCandidateSampler"
_CENTRES = "it chooses the first centres of k-means: choose them beside the client, and feed them"
_WORDS = "it is the training of word2vec, for a file of words: compose it of Gather and a sampler"
_CALIBRATION = "it watches values for TensorFlow's quantiser: calibrate before you export"
_SUPERSEDED = "TensorFlow itself refuses it in graphs of the last years"
_GPU = "it asks for a property of TensorFlow's GPUs"

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
        (_CUDNN, "CudnnRNNBackprop CudnnRNNBackpropV2 CudnnRNNBackpropV3"),
        (
            _WEIGHTS,
            "CudnnRNNCanonicalToParams CudnnRNNCanonicalToParamsV2 CudnnRNNParamsToCanonical"
            " CudnnRNNParamsToCanonicalV2",
        ),
        (_LEARNED, "LearnedUnigramCandidateSampler ThreadUnsafeUnigramCandidateSampler"),
        (_CENTRES, "KMC2ChainInitialization KmeansPlusPlusInitialization"),
        (_WORDS, "NegTrain Skipgram"),
        (_CALIBRATION, "CalibrationStatisticsSaver CustomAggregator"),
        (_SUPERSEDED, "StatefulStandardNormal TensorArrayPack TensorArrayUnpack"),
        (_GPU, "CheckPinned IsTensorFloat32Enabled SyncDevice"),
        (
            _TPU,
            "AllToAll CollectivePermute CrossReplicaSum KthOrderStatistic MakeUnique TPUEmbeddingActivations"
            " TPUReplicatedInput TopKUnique TopKWithUnique XlaClusterOutput XlaSpmdFullToShardShape"
            " XlaSpmdShardToFullShape XlaVariadicReduce",
        ),
        (_MESH, "CopyToMesh CopyToMeshGrad Relayout RelayoutLike"),
        (_DEBUGGER, "DebugGradientRefIdentity"),
        (_PROTOCOL_BUFFERS, "DecodeProtoV2 EncodeProto"),
        (_SDCA, "SdcaFprint SdcaOptimizer SdcaOptimizerV2 SdcaShrinkL1"),
        (_NO_OP, "ScatterNdDiv ScatterNdMul StatelessRandomShuffle"),
        ("its value is a constant of TensorFlow's eager mode, in which there is no graph", "_EagerConst"),
        ("it ends the process that runs it", "Abort"),
        ("it runs a program of TensorFlow's compiler, MLIR, that is written in an attr", "MlirPassthroughOp"),
        ("which reference it hands on shows only when it runs: choose between values, by Select", "RefSelect"),
        ("it knows each letter's script by a table of ICU's that Python lacks", "UnicodeScript"),
        ("it rounds at random, by numbers of TensorFlow's own that nobody documents: use Round", "StochasticCastToInt"),
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
    "it computes in integers by kernels of TensorFlow's for one kind of processor: send the graph in floats, or put"
    " Dequantize before it"
)
_REPLICAS = "it gathers the gradients of TensorFlow 1's replicas: ask for gradients with shards instead"
_TREES = "its trees are kept in a resource of TensorFlow's own: serve them with a library of trees"
_EVENTS = "it writes events to a file of the server: fetch the summary, and write it beside the client"

_REDUCED = "it belongs to an experiment with fewer ops, for which TensorFlow has no kernels"
_REMOTE = "it calls TensorFlow servers in their own protocol: run the graph here as a whole"
_INTERNAL = "TensorFlow makes it while it runs a graph, and leaves it in none that it exports"

FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("input pipelines", r".*Dataset.*|.*Iterator.*|.*SeedGenerator|.*MemoryCache|.*StatsAggregator.*"
     r"|.*ThreadPoolHandle|(C|Unc)ompressElement|Get(Options|ElementAtIndex)|MapDefun|WindowOp|ComputeBatchSize"
     r"|DummyIterationCounter", _PIPELINES),
    ("programs for TPUs", r".*TPU.*|.*Xla.*|(In|Out)feed(De|En)queue.*|.*SparseCore.*|.*PhysicalReplica|Prelinearize.*"
     r"|ConvertToCooTensor|StoreMinibatchStatistics.*|GlobalIterId|.*Tpu.*|.*Dedup.*|UpdateTaskIdAndGlobalCoreArray"
     r"|WorkerHeartbeat", _TPU),
    ("gathered gradients", r".*Accumulator.*", _REPLICAS),
    ("between devices", r"Collective.*|Send|Recv|Nccl.*", _COLLECTIVE),
    ("queues and stages", r".*Queue.*|RecordInput|Barrier.*|(Ordered)?(Map)?(Uns|S)tage.*"
     r"|(Ordered)?Map(Clear|Peek|Size|IncompleteSize|UnstageNoKey)|Batch|Unbatch(Grad)?|.*Sparse(To|From)TensorsMap",
     _QUEUES),
    ("checkpoints", r"Save.*|Restore.*|MergeV2Checkpoints|DistributedSave|Sharded.*|DisableCopyOnRead", _CHECKPOINTS),
    ("events", r".*SummaryWriter|Write.*Summary|CreateSummary.*|ImportEvent", _EVENTS),
    ("files", r".*Reader.*|.*File.*|ImmutableConst", _FILES),
    ("pictures and sounds", r"(Decode|Encode).*(Jpeg|Png|Bmp|Gif|Image|Jxl|WebP|Wav)(VariableQuality)?|ExtractJpegShape",
     _PICTURES),
    ("integer arithmetic", r"Quantized(?!(Add|AvgPool|BiasAdd|Concat|Conv2D|MatMul|MaxPool|Mul|Relu6?|Reshape)$).*"
     r"|Requantiz.*PerChannel|UniformQuantized.*|UniformRequantize", _INTEGERS),
    ("boosted trees", r"(Is)?BoostedTrees.*", _TREES),
    ("the debugger", r"Debug.*|DumpTensor|Copy(Host)?", _DEBUGGER),
    ("meshes", r"DTensor.*", _MESH),
    ("a reduced set of ops", r"Risc.*", _REDUCED),
    ("calls of other servers", r"(DeleteRpcFuture|Rpc).*", _REMOTE),
    ("what is inside", r"_.*", _INTERNAL),
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
