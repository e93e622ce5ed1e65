"""SavedModels: signatures, variables from the checkpoint, and gradients that were saved with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradserve.client as gs
from gradserve.errors import InvalidArgument, NotFound
from gradserve.files.v1 import saved_model_pb2
from gradserve.graph import dtypes
from gradserve.graph.graph import FunctionName
from gradserve.saved.checkpoint import Checkpoint, read_part
from tests.client import partitioned
from tests.client.saved import (
    B,
    Nodes,
    W,
    add_function,
    references,
    write_checkpoint,
    write_model,
    write_references,
)

X = np.array([0.3, -0.7, 1.1], np.float32)
FLOAT, RESOURCE = dtypes.float32, dtypes.resource


# Checkpoints


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = {f"layer/{'k' * k}": np.arange(12.0).reshape(3, 4) + k for k in range(200)}
    tensors |= {
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 2), np.float32),
        "flags": np.array([True, False]),
    }
    write_checkpoint(tmp_path / "c", tensors, entries_a_block=7)
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint.entries.keys() == tensors.keys()
    for key, value in tensors.items():
        found = checkpoint.read(key)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


def test_slices_that_tensorflow_wrote_are_put_together(tmp_path: Path) -> None:
    checkpoint = Checkpoint(partitioned.write(tmp_path / "c"))
    assert set(checkpoint.entries) == {"b", "layer/v", "layer/w", "long"}
    w, v = np.arange(15.0).reshape(5, 3), np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(checkpoint.read("layer/w"), w)
    np.testing.assert_array_equal(checkpoint.read("layer/v"), v)
    np.testing.assert_array_equal(checkpoint.read("long"), np.arange(300) % 251)
    np.testing.assert_array_equal(checkpoint.read("layer/w", ((2, 2), (1, 2))), w[2:4, 1:])
    np.testing.assert_array_equal(checkpoint.read("layer/v", read_part("3 4 -:1,2", "layer/v")), v[:, 1:3])
    np.testing.assert_array_equal(checkpoint.read("b", ((1, 3),)), [1, 2, 3])


def test_slices_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    checkpoint = Checkpoint(partitioned.write(tmp_path / "c"))
    with pytest.raises(InvalidArgument, match=r"'layer/w' .* has the shape \(5, 3\), and no part"):
        checkpoint.read("layer/w", ((4, 2), (0, 3)))
    with pytest.raises(InvalidArgument, match="'5 3 0,x' is no part of 'layer/w'"):
        read_part("5 3 0,x", "layer/w")
    del checkpoint.entries["layer/w"].slices[0]
    with pytest.raises(InvalidArgument, match=r"The slices of 'layer/w' .* leave gaps"):
        checkpoint.read("layer/w")
    checkpoint.entries["layer/v"].slices[0].extent[0].length = 2
    with pytest.raises(InvalidArgument, match=r"lacks the slice \(\(0, 2\), .* of 'layer/v'"):
        checkpoint.read("layer/v")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", {"w": W})
    with pytest.raises(NotFound, match="has no tensor 'v'"):
        Checkpoint(tmp_path / "c").read("v")


@pytest.mark.parametrize("size", [0, 47, 60, 100])
def test_a_damaged_index_is_an_error(tmp_path: Path, size: int) -> None:
    write_checkpoint(tmp_path / "c", {f"w{k}": W for k in range(9)})
    path = tmp_path / "c.index"
    path.write_bytes(path.read_bytes()[-size:] if size else b"")
    with pytest.raises(InvalidArgument, match="is no index of a checkpoint, or it is damaged"):
        Checkpoint(tmp_path / "c")


def test_data_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", {"w": W})
    (tmp_path / "c.data-00000-of-00001").write_bytes(W.tobytes()[:-1])
    with pytest.raises(InvalidArgument, match="is cut short: 'w' needs 12 bytes"):
        Checkpoint(tmp_path / "c").read("w")


# Models


def _of_functions(folder: Path, capture_from: str = "model") -> Path:
    """y = w x through tf.custom_gradient with the gradient 5 w dy for x, as TensorFlow 2 saves it."""
    meta = saved_model_pb2.MetaGraphDef()
    meta.meta_info_def.tags.append("serve")
    graph = meta.graph_def
    outer = Nodes(graph.node)
    outer.add("VarHandleOp", "w", dtype=FLOAT, shape=(3,), shared_name="w")
    outer.add("VarHandleOp", "unused", dtype=FLOAT, shape=(3,), shared_name="unused")
    outer.add("ReadVariableOp", "unused/Read", "unused", dtype=FLOAT)
    outer.add("Placeholder", "serving_x", dtype=FLOAT, shape=(3,))
    called = {"Tin": [FLOAT, RESOURCE], "Tout": [FLOAT]}
    outer.add("StatefulPartitionedCall", "call", "serving_x", "w", f=FunctionName("model", {}), **called)
    outer.add("Placeholder", "filename", dtype=dtypes.string, shape=())
    restoring: dict[str, Any] = {"Tin": [dtypes.string, RESOURCE, RESOURCE], "Tout": [dtypes.string]}
    outer.add(
        "StatefulPartitionedCall",
        "restore",
        "filename",
        "w",
        "unused",
        f=FunctionName("traced_restore", {}),
        **restoring,
    )

    model = add_function(graph, "model", {"x": FLOAT, "handle": RESOURCE}, {"y": "IdentityN:output:0"})
    model.add("ReadVariableOp", "read", "handle", dtype=FLOAT)
    model.add("Mul", "product", "x", "read:value:0", T=FLOAT)
    custom = {"T": [FLOAT, FLOAT], "_gradient_op_type": "CustomGradient-9"}
    model.add("IdentityN", "IdentityN", "product:z:0", "x", "^read", **custom)
    takes = {"result_grads_0": FLOAT, "result_grads_1": FLOAT, "held": FLOAT}
    slope = add_function(graph, "grad_fn", takes, {"dx": "scaled:z:0"})
    slope.add("Const", "five", value=np.array(5, np.float32), dtype=FLOAT)
    slope.add("Mul", "times", "result_grads_0", "held", T=FLOAT)
    slope.add("Mul", "scaled", "times:z:0", "five:output:0", T=FLOAT)
    takes = {"prefix": dtypes.string, "handle": RESOURCE, "other": RESOURCE}
    restore = add_function(graph, "traced_restore", takes, {})
    restore.text("names", "w/.ATTRIBUTES/VARIABLE_VALUE", "unused/.ATTRIBUTES/VARIABLE_VALUE")
    restore.text("slices", "", "")
    restore.add("RestoreV2", "RestoreV2", "prefix", "names:output:0", "slices:output:0", dtypes=[FLOAT, FLOAT])
    restore.add("AssignVariableOp", "assign_other", "other", "RestoreV2:tensors:1", dtype=FLOAT)
    restore.add("Identity", "Identity", "RestoreV2:tensors:0", T=FLOAT)
    restore.add("AssignVariableOp", "assign", "handle", "Identity:output:0", dtype=FLOAT)

    graph.library.registered_gradients.add(gradient_func="grad_fn", registered_op_type="CustomGradient-9")
    meta.saver_def.filename_tensor_name, meta.saver_def.restore_op_name = "filename:0", "restore"
    signature = meta.signature_def["serving_default"]
    signature.inputs["x"].name, signature.outputs["y"].name = "serving_x:0", "call:0"
    captured = meta.object_graph_def.nodes.add().captured_tensor
    captured.name, captured.concrete_function = "read:0", capture_from
    traced = meta.object_graph_def.concrete_functions["grad_fn"]
    traced.bound_inputs.append(0)
    traced.output_signature.list_value.values.add().none_value.SetInParent()
    traced.output_signature.list_value.values.add()
    write_checkpoint(folder / "variables" / "variables", {"w/.ATTRIBUTES/VARIABLE_VALUE": W})
    return write_model(folder, meta)


def test_a_model_of_functions_gives_its_values_and_the_gradients_that_were_saved_with_it(
    client: gs.Client, tmp_path: Path
) -> None:
    graph = gs.Graph.from_saved_model(_of_functions(tmp_path))
    x, y = graph.signatures["serving_default"].inputs["x"], graph.signatures["serving_default"].outputs["y"]
    assert [variable.handle.node.name for variable in graph.variables] == ["w"]
    assert "restore" not in graph
    with client.session(graph) as session:
        (value,) = session.run({x: X}, [y])  # and a variable that nothing needs takes no room
        np.testing.assert_allclose(value, W * X)
        (slope,) = session.compute_gradients([y], [x], {x: X})
        assert isinstance(slope, np.ndarray)
        np.testing.assert_allclose(slope, 5 * W)


def test_a_model_of_references_gives_values_and_gradients(client: gs.Client, tmp_path: Path) -> None:
    graph = gs.Graph.from_saved_model(write_references(tmp_path))
    x, y = graph.tensor("x"), graph.signatures["serving_default"].outputs["y"]
    assert "save/Assign" not in graph
    bias, weight = graph.variables
    with client.session(graph) as session:
        found = session.compute_gradients([y], [x, weight, bias], {x: X})
        for slope, expected in zip(found, [W, X, 3.0], strict=True):
            assert isinstance(slope, np.ndarray)
            np.testing.assert_allclose(slope, expected)
        np.testing.assert_allclose(session.run({x: X}, [y, weight])[0], X * W + B)


def test_a_meta_graph_is_loaded_with_the_checkpoint_beside_it(client: gs.Client, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.ckpt-7", {"layer/w": W, "b": B})
    (tmp_path / "model.ckpt-7.meta").write_bytes(references().SerializeToString())
    graph = gs.Graph.from_meta_graph(tmp_path / "model.ckpt-7.meta")
    with client.session(graph) as session:
        np.testing.assert_allclose(session.run({"x": X}, ["y"])[0], X * W + B)


def test_what_is_no_graph_def_says_how_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"is a SavedModel: load its folder with Graph.from_saved_model"):
        gs.load_graph(write_references(tmp_path))
    with pytest.raises(InvalidArgument, match=r"is a meta graph: load it with Graph.from_meta_graph"):
        gs.load_graph(tmp_path / "model.meta")


def test_a_capture_from_another_function_is_an_error_that_names_the_gradient_function(tmp_path: Path) -> None:
    graph = gs.Graph.from_saved_model(_of_functions(tmp_path, capture_from="another"))
    signature = graph.signatures["serving_default"]
    with pytest.raises(LookupError, match="its gradient function grad_fn does not fit it, it takes 3 arguments"):
        graph.gradients(signature.outputs["y"], signature.inputs["x"])


def test_a_partitioned_variable_is_restored_in_its_parts(client: gs.Client, tmp_path: Path) -> None:
    """Also where the graph has other parts than the checkpoint."""
    meta = saved_model_pb2.MetaGraphDef()
    nodes = Nodes(meta.graph_def.node)
    parts = {"w/part_0": ("layer/w", "5 3 0,4:-"), "w/part_1": ("layer/w", "5 3 4,1:-"), "b": ("b", "")}
    nodes.add("Placeholder", "save/Const", dtype=dtypes.string, shape=())
    nodes.text("save/names", *(key for key, _ in parts.values()))
    nodes.text("save/slices", *(part for _, part in parts.values()))
    nodes.add("RestoreV2", "save/RestoreV2", "save/Const", "save/names", "save/slices", dtypes=[FLOAT] * 3)
    for k, (name, shape) in enumerate(zip(parts, [(4, 3), (1, 3), (4,)], strict=True)):
        nodes.add("VariableV2", name, dtype=FLOAT, shape=shape)
        nodes.add("Assign", f"save/Assign_{k}", name, f"save/RestoreV2:{k}", T=FLOAT)
    meta.saver_def.filename_tensor_name, meta.saver_def.restore_op_name = "save/Const:0", "save/Assign_2"
    prefix = partitioned.write(tmp_path / "model.ckpt")
    prefix.with_name("model.ckpt.meta").write_bytes(meta.SerializeToString())
    graph = gs.Graph.from_meta_graph(prefix.with_name("model.ckpt.meta"))
    with client.session(graph) as session:
        first, last, b = session.run(fetches=graph.variables)
    np.testing.assert_array_equal(np.concatenate([first, last]), np.arange(15).reshape(5, 3))
    np.testing.assert_array_equal(b, np.arange(4))


def test_a_meta_graph_is_chosen_by_its_tags(tmp_path: Path) -> None:
    metas = [saved_model_pb2.MetaGraphDef() for _ in range(2)]
    for meta, tags in zip(metas, (["serve"], ["serve", "gpu"]), strict=True):
        meta.meta_info_def.tags.extend(tags)
        Nodes(meta.graph_def.node).add("Placeholder", "_".join(tags), dtype=FLOAT, shape=())
    folder = write_model(tmp_path, *metas)
    assert "serve" in gs.Graph.from_saved_model(folder)
    assert "serve_gpu" in gs.Graph.from_saved_model(folder, tags=["gpu", "serve"])
    with pytest.raises(InvalidArgument, match=r"no meta graph with the tags \['train'\]: it has \['serve'\]"):
        gs.Graph.from_saved_model(folder, tags=["train"])


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="Name a SavedModel's folder"):
        gs.Graph.from_saved_model(tmp_path)
