"""ONNX files as targets: what is read from them, what has to be said, and what is refused."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dualstudent as ds
from dualstudent.ledger import Account
from dualstudent.targets import OnnxTarget, Opened, TargetOptions, open_target
from onnx_fixture import Node, build, claim, logits

PROBS = ("p", "float32", ("n", 3))
LOGITS = ("l", "float32", ("n", 3))
LABELS = ("t", "int64", ("n",))


def images(n: int = 5, shape: tuple[int, int, int] = (1, 4, 4)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def opened(path: Path, **options: Any) -> Opened:
    return open_target(f"onnx:{path}", TargetOptions(**options))


def asked(target: ds.Target, x: Tensor) -> Tensor:
    return ds.Oracle(target, Account("attack"))(x)


def softmax(x: Tensor, classes: int = 3) -> Tensor:
    return torch.from_numpy(logits(x.numpy(), classes)).softmax(1)


class TestInputs:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    @pytest.mark.parametrize("batch", ["n", None, 1, 2, 4, 5, 7])
    @pytest.mark.parametrize("last", [False, True])
    def test_any_order_type_and_batch_is_the_same_model(
        self, dtype: str, batch: int | str | None, last: bool, tmp_path: Path
    ) -> None:
        shape, x = (3, 4, 6), images(5, (3, 4, 6))
        dims = (batch, 4, 6, 3) if last else (batch, 3, 4, 6)
        outputs = [("p", "float32", (batch, 3))]
        path = build(tmp_path / "m.onnx", shape=shape, dims=dims, dtype=dtype, last=last, outputs=outputs)
        target = opened(path).target
        assert target.spec == ds.Spec(shape, 3, half=dtype == "float16")
        tolerance = 2e-2 if dtype == "float16" else 1e-5
        assert torch.allclose(asked(target, x), softmax(x), atol=tolerance)

    def test_more_images_than_are_given_to_it_at_once(self, tmp_path: Path) -> None:
        x = images(600)
        assert torch.allclose(asked(opened(build(tmp_path / "m.onnx")).target, x), softmax(x), atol=1e-5)

    @pytest.mark.parametrize("bounds", [None, (0.0, 255.0), (-1.0, 1.0)])
    def test_bytes_are_levels_and_what_was_sent_is_what_is_recorded(
        self, bounds: tuple[float, float] | None, tmp_path: Path
    ) -> None:
        path = build(tmp_path / "m.onnx", dtype="uint8", scale=255.0)
        target = opened(path, bounds=bounds).target
        low, high = bounds or (0.0, 1.0)
        assert target.spec == ds.Spec((1, 4, 4), 3, bounds=(low, high), levels=256)
        told: list[tuple[Tensor, Tensor]] = []
        x = low + (high - low) * images()
        answer = ds.Oracle(target, Account("attack"), asked=told)(x)
        sent = (images() * 255).round() / 255
        assert torch.allclose(answer, softmax(sent), atol=1e-5)
        [(seen, _)] = told
        assert torch.allclose(seen, low + (high - low) * sent, atol=1e-4)
        assert torch.equal(target(seen), answer)

    def test_every_byte_comes_through(self, tmp_path: Path) -> None:
        nodes: list[Node] = [("ReduceMax", ["r"], ["top"], {"axes": [1, 2, 3], "keepdims": 0})]
        nodes.append(("Mul", ["top", "scale"], ["byte"], {}))
        nodes.append(("Cast", ["byte"], ["class"], {"to": 7}))
        path = build(
            tmp_path / "m.onnx",
            shape=(1, 1, 1),
            dims=("n", 1, 1, 1),
            dtype="uint8",
            more=nodes,
            outputs=[("class", "int64", ("n",))],
        )
        for bounds in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-2.0, 0.3)):
            target = opened(path, classes=256, bounds=bounds, layout="nchw").target
            x = target.spec.quantise(torch.linspace(*bounds, 256).view(-1, 1, 1, 1))
            assert asked(target, x).argmax(1).tolist() == list(range(256))

    def test_free_sides_are_filled(self, tmp_path: Path) -> None:
        for dims in (("n", 1, "h", "w"), ("n", None, None, None), ("n", "c", 4, 4)):
            path = build(tmp_path / "m.onnx", dims=dims)
            with pytest.raises(ds.UserError, match="--shape C H W"):
                opened(path)
            options: dict[str, Any] = {"layout": "nchw"} if dims[1] is None else {}
            assert opened(path, shape=(1, 4, 4), **options).target.spec.shape == (1, 4, 4)

    def test_flat_rows_and_grey_images(self, tmp_path: Path) -> None:
        flat = build(tmp_path / "flat.onnx", dims=("n", 16))
        with pytest.raises(ds.UserError, match="rows of 16 values: say what images they are, --shape C H W"):
            opened(flat)
        grey = build(tmp_path / "grey.onnx", dims=("n", 4, 4))
        for target in (opened(flat, shape=(1, 4, 4)).target, opened(grey).target):
            assert torch.allclose(asked(target, images()), softmax(images()), atol=1e-5)

    @pytest.mark.parametrize(
        ("dims", "options", "word"),
        [
            (("n", 1, 4, 4), {"shape": (3, 4, 4)}, "--shape 3 4 4: .* takes images of 1×4×4"),
            (("n", 3, 4, 3), {}, "--layout nchw or --layout nhwc"),
            (("n", 8, 8, 8), {}, "--layout nchw or --layout nhwc"),
            (("n", 16), {"shape": (1, 4, 5)}, "--shape 1 4 5: .* rows of 16 values"),
            ((3, 4, 4), {}, "no axis for a batch"),
            (("n", 2, 1, 4, 4), {}, "no batch of images"),
            (("n", 1, 4, 4), {"classes": 4}, "--classes 4: .* has 3"),
            (("n", 1, 4, 4), {"bounds": (1.0, 0.0)}, "input bounds"),
            (("n", 1, 4, 4), {"output_name": "q"}, "--output-name q: .* has 'p'"),
            (("n", 1, 4, 4), {"output": "logits"}, "ends in a softmax"),
            (("n", 1, 4, 4), {"space": "normalised"}, "--space does not fit"),
        ],
    )
    def test_what_does_not_fit_names_the_option(
        self, dims: tuple[Any, ...], options: dict[str, Any], word: str, tmp_path: Path
    ) -> None:
        path = build(tmp_path / "m.onnx", dims=dims, shape=(1, 4, 4))
        with pytest.raises(ds.UserError, match=word) as caught:
            opened(path, **options)
        assert "\n" not in str(caught.value)

    def test_other_types_and_levels_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ds.UserError, match=r"tensor\(int8\)"):
            opened(build(tmp_path / "m.onnx", dtype="int8"))
        bytes_too = build(tmp_path / "m.onnx", dtype="uint8")
        with pytest.raises(ds.UserError, match=r"--levels 16: .* takes bytes"):
            opened(bytes_too, levels=16)
        assert opened(build(tmp_path / "m.onnx"), levels=16).target.spec.levels == 16


class TestOutputs:
    def test_logits_probabilities_and_labels(self, tmp_path: Path) -> None:
        x = images()
        by_logits = opened(build(tmp_path / "l.onnx", outputs=[LOGITS]), output="logits").target
        assert torch.allclose(asked(by_logits, x), softmax(x), atol=1e-5)
        with pytest.raises(ds.TargetError, match="--output logits"):
            asked(opened(tmp_path / "l.onnx").target, x)
        path = build(tmp_path / "t.onnx", outputs=[LABELS])
        with pytest.raises(ds.UserError, match="--classes K, or --classes unknown"):
            opened(path)
        target = opened(path, classes=3).target
        assert target.spec.access == ds.Access.LABEL
        assert torch.equal(asked(target, x).argmax(1), softmax(x).argmax(1))
        assert opened(path, classes="unknown").target.spec.classes is None
        assert opened(tmp_path / "l.onnx", output="labels").target.spec.access == ds.Access.LABEL

    def test_labels_beside_probabilities(self, tmp_path: Path) -> None:
        """As scikit-learn's models are converted."""
        path, x = build(tmp_path / "m.onnx", outputs=[LABELS, PROBS]), images()
        assert torch.allclose(asked(opened(path).target, x), softmax(x), atol=1e-5)
        words = r"how many classes its output 't' has: give --classes K \(its output 'p' has 3\)"
        with pytest.raises(ds.UserError, match=words):
            opened(path, output="labels")
        for options in ({"output": "labels"}, {"output_name": "t"}):
            target = opened(path, classes=3, **options).target
            assert target.spec.access == ds.Access.LABEL
            assert torch.equal(asked(target, x).argmax(1), softmax(x).argmax(1))

    def test_of_several_outputs_one_has_to_be_named(self, tmp_path: Path) -> None:
        path = build(tmp_path / "m.onnx", outputs=[PROBS, LOGITS])
        with pytest.raises(ds.UserError, match=r"several outputs \('p'.*'l'.*--output-name"):
            opened(path)
        first = opened(path, output_name="p").target
        second = opened(path, output_name="l", output="logits").target
        assert torch.allclose(asked(first, images()), asked(second, images()), atol=1e-5)

    def test_a_list_of_dictionaries_says_how_to_be_converted(self, tmp_path: Path) -> None:
        import onnx

        nodes: list[Node] = [
            ("ZipMap", ["p"], ["z"], {"domain": "ai.onnx.ml", "classlabels_int64s": [0, 1, 2]})
        ]
        path = build(tmp_path / "m.onnx", outputs=[LABELS], more=nodes)
        model = onnx.load(path)
        model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
        kind = onnx.helper.make_map_type_proto(7, onnx.helper.make_tensor_type_proto(1, None))
        port = onnx.helper.make_value_info("z", onnx.helper.make_sequence_type_proto(kind))
        model.graph.output.append(port)
        onnx.save(model, path)
        with pytest.raises(ds.UserError, match=r"'zipmap': False.*--output-name t"):
            opened(path)
        assert opened(path, output_name="t", classes=3).target.spec.access == ds.Access.LABEL

    def test_one_column_is_the_second_of_two_classes(self, tmp_path: Path) -> None:
        nodes: list[Node] = [("Sigmoid", ["l"], ["s1"], {})]
        x = images()
        one = torch.from_numpy(logits(x.numpy(), 1)).sigmoid()
        path = build(tmp_path / "m.onnx", classes=1, more=nodes, outputs=[("s1", "float32", ("n", 1))])
        raw = build(tmp_path / "l.onnx", classes=1, outputs=[("l", "float32", ("n", 1))])
        for target in (opened(path).target, opened(raw, output="logits").target):
            assert target.spec.classes == 2
            assert torch.allclose(asked(target, x), torch.cat([1 - one, one], 1), atol=1e-5)
        labels = asked(opened(path, output="labels").target, x)
        assert torch.equal(labels.argmax(1), (one > 0.5).long()[:, 0])

    def test_a_network_without_a_head(self, tmp_path: Path) -> None:
        nodes: list[Node] = [("Reshape", ["p", "four"], ["q"], {})]
        nodes.insert(0, ("Constant", [], ["four"], {"value_ints": [-1, 3, 1, 1]}))
        path = build(tmp_path / "m.onnx", more=nodes, outputs=[("q", "float32", ("n", 3, 1, 1))])
        assert torch.allclose(asked(opened(path).target, images()), softmax(images()), atol=1e-5)

    def test_a_shape_that_is_not_said(self, tmp_path: Path) -> None:
        nodes: list[Node] = [
            ("Constant", [], ["zero"], {"value_int": 0}),
            ("Gather", ["p", "zero"], ["row"], {}),
        ]
        nodes += [("Constant", [], ["low"], {"value_float": -1.0}), ("Greater", ["row", "low"], ["all"], {})]
        nodes += [("Compress", ["p", "all"], ["q"], {"axis": 1})]  # as many columns as there turn out to be
        path = build(tmp_path / "m.onnx", more=nodes, outputs=[("q", "float32", ("n", "k"))])
        with pytest.raises(ds.UserError, match="--classes K"):
            opened(path)
        assert torch.allclose(asked(opened(path, classes=3).target, images()), softmax(images()), atol=1e-5)
        with pytest.raises(ds.TargetError, match="3 classes, its spec says 4"):
            asked(opened(path, classes=4).target, images())

    def test_what_is_no_answer_of_a_classifier(self, tmp_path: Path) -> None:
        with pytest.raises(ds.UserError, match=r"no batch of answers"):
            opened(build(tmp_path / "m.onnx", outputs=[("c", "float32", ("n", 1, 4, 4))]))
        nodes: list[Node] = [("Cast", ["p"], ["b"], {"to": 7})]
        with pytest.raises(ds.UserError, match="neither numbers for each class nor class numbers"):
            opened(build(tmp_path / "m.onnx", more=nodes, outputs=[("b", "int64", ("n", 3))]))


class TestFiles:
    def test_what_is_no_model(self, tmp_path: Path) -> None:
        whole = build(tmp_path / "whole.onnx").read_bytes()
        for content in (b"", b"PK\x03\x04", b"\x80\x04\x95pickle", whole[: len(whole) // 2], b"x" * 500):
            (tmp_path / "m.onnx").write_bytes(content)
            with pytest.raises(ds.UserError, match=r"m\.onnx") as caught:
                opened(tmp_path / "m.onnx")
            assert "\n" not in str(caught.value)
        with pytest.raises(ds.UserError, match=r"no file .*none\.onnx"):
            opened(tmp_path / "none.onnx")
        with pytest.raises(ds.UserError, match="no file"):
            opened(tmp_path)

    def test_a_model_that_cannot_run(self, tmp_path: Path) -> None:
        unknown: list[Node] = [("NoSuchOperation", ["p"], ["q"], {})]
        with pytest.raises(ds.UserError, match="onnxruntime cannot open") as caught:
            opened(build(tmp_path / "m.onnx", more=unknown, outputs=[("q", "float32", ("n", 3))]))
        assert "\n" not in str(caught.value)
        wrong = build(tmp_path / "m.onnx", shape=(1, 4, 5), dims=("n", 1, 4, 4))
        with pytest.raises(ds.TargetError, match=r"failed on images \(3, 1, 4, 4\)") as caught:
            asked(opened(wrong).target, images(3))
        assert "\n" not in str(caught.value)

    def test_a_plain_name_will_do(self, tmp_path: Path) -> None:
        path = build(tmp_path / "m.onnx")
        assert open_target(str(path)).reference == f"onnx:{path}"

    def test_weights_beside_it(self, tmp_path: Path) -> None:
        path = build(tmp_path / "m.onnx", external="m.onnx.data")
        first = opened(path)
        assert list(first.files) == ["m.onnx", "m.onnx.data"]
        assert all(len(total) == 64 for total in first.files.values())
        assert first.sha256 == first.files["m.onnx"]
        assert torch.allclose(asked(first.target, images()), softmax(images()), atol=1e-5)
        (tmp_path / "m.onnx.data").unlink()
        with pytest.raises(ds.UserError, match=r"lacks its file of weights m\.onnx\.data"):
            opened(path)

    @pytest.mark.parametrize(
        "location",
        [
            "/etc/passwd",
            "../secret",
            "sub/../../secret",
            "C:\\secret",
            "..\\secret",
            "*/_ORT_MEM_ADDR_/*",
            "",
        ],
    )
    def test_weights_elsewhere_are_refused(self, location: str, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(4096))
        (tmp_path / "models").mkdir()
        path = claim(build(tmp_path / "models" / "m.onnx"), location)
        with pytest.raises(ds.UserError, match="only files in its own folder"):
            opened(path)

    def test_a_link_out_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(4096))
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "weights").symlink_to(tmp_path / "secret")
        with pytest.raises(ds.UserError, match="a link out of its folder"):
            opened(claim(build(tmp_path / "models" / "m.onnx"), "weights"))

    def test_without_onnxruntime_the_extra_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, real = build(tmp_path / "m.onnx"), builtins.__import__
        for missing in ("onnx", "onnxruntime"):

            def without(name: str, *more: Any, missing: str = missing) -> Any:
                if name == missing:
                    raise ImportError(name)
                return real(name, *more)

            monkeypatch.setattr(builtins, "__import__", without)
            with pytest.raises(ds.UserError, match=r"pip install 'dualstudent\[onnx\]'"):
                opened(path)

    def test_follows_the_threads(self, tmp_path: Path) -> None:
        target = opened(build(tmp_path / "m.onnx")).target
        assert isinstance(target, OnnxTarget)
        for threads in (2, 1):
            torch.set_num_threads(threads)
            asked(target, images())
            assert target._running().get_session_options().intra_op_num_threads == threads
