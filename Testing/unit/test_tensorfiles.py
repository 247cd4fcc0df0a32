"""Safetensors files: the same bytes and values as the official package, and nothing invalid is accepted."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.tensorfiles import read_tensors, write_tensors

TYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "<u8", "<u4", "<u2", "u1", "bool"]


def assorted_tensors():
    values = np.random.default_rng(3).integers(0, 120, 30)
    tensors = {f"tensor {name}": values.astype(name).reshape(2, 3, 5) for name in TYPES}
    return tensors | {"scalar": np.array(2.5), "empty": np.zeros((0, 4), np.float32), "odd": np.arange(7, dtype="u1")}


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name, strict=True)


def header_and_values(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_raw(path, header, values=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)


def test_the_official_package_reads_what_we_write(tmp_path):
    write_tensors(tmp_path / "ours.safetensors", assorted_tensors(), {"id": "knee", "maker": "Lékař"})
    assert_same(safetensors.numpy.load_file(tmp_path / "ours.safetensors"), assorted_tensors())
    with safetensors.safe_open(tmp_path / "ours.safetensors", "numpy") as stream:
        assert stream.metadata() == {"id": "knee", "maker": "Lékař"}


def test_we_read_what_the_official_package_writes(tmp_path):
    safetensors.numpy.save_file(assorted_tensors(), tmp_path / "official.safetensors", {"id": "knee"})
    assert_same(read_tensors(tmp_path / "official.safetensors"), assorted_tensors())


def test_our_bytes_are_those_of_the_official_package(tmp_path):
    tensors = {"b": np.arange(3, dtype="f2"), "a": np.arange(4, dtype="f2"), "c": np.arange(2, dtype="f4")}
    write_tensors(tmp_path / "ours.safetensors", tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "official.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "official.safetensors").read_bytes()


def test_big_endian_and_strided_arrays_keep_their_values(tmp_path):
    tensors = {"swapped": np.arange(6, dtype=">f4"), "strided": np.arange(24.0).reshape(4, 6)[::2, ::-1].T}
    write_tensors(tmp_path / "a.safetensors", tensors)
    read = read_tensors(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read["swapped"], np.arange(6))
    np.testing.assert_array_equal(read["strided"], tensors["strided"])


def test_read_arrays_can_be_written_to(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": np.zeros(3, np.float16)})
    read_tensors(tmp_path / "a.safetensors")["a"][0] = 1


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array(["text"]), np.array([None])])
def test_types_outside_the_format_are_refused(tmp_path, array):
    with pytest.raises(TypeError):
        write_tensors(tmp_path / "a.safetensors", {"a": array})
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_tensors(tmp_path / "none.safetensors")


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_tensors(tmp_path / "none" / "a.safetensors", {"a": np.zeros(1)})


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.zeros(1)})
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left"):
        write_tensors(path, {"a": np.ones(1)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def entry(begin, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header, size",
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12),  # overlap
        ({"a": entry(0, 8), "b": entry(12, 16)}, 16),  # gap
        ({"a": entry(4, 8)}, 8),  # gap at the start
        ({"a": entry(0, 8)}, 12),  # values left over
        ({"a": entry(0, 8)}, 4),  # values missing
        ({"a": entry(0, 8, shape=[3])}, 8),
        ({"a": entry(0, 8, shape=[-1, -2])}, 8),
        ({"a": entry(0, 8, shape=[2.0])}, 8),
        ({"a": entry(0, 4, shape=[True])}, 4),
        ({"a": entry(0, 8, shape=2)}, 8),
        ({"a": entry(0, 0, shape=[2**62, 2**62, 0])}, 0),
        ({"a": entry(0, 4, shape=[1] * 99)}, 4),
        ({"a": entry(0, 8, shape=[2**63, 2**63])}, 8),
        ({"a": entry(-8, 0)}, 8),
        ({"a": entry(8, 0, shape=[2])}, 8),
        ({"a": entry(0, 8, dtype="F33")}, 8),
        ({"a": entry(0, 8, dtype=["F32"])}, 8),
        ({"a": entry(0, 8, dtype="BF16", shape=[4])}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": entry(0, 8) | {"more": 1}}, 8),
        ({"a": 1}, 0),
        ({"__metadata__": {"a": 1}}, 0),
        ({"__metadata__": 1}, 0),
        ([1], 0),
        (b"{'a'}", 0),
        (b"\xff\xfe", 0),
        (b"[" * 100_000, 0),
        (b'{"a": 1, "a": 1}', 0),
    ],
)
def test_invalid_headers_are_refused(tmp_path, header, size):
    write_raw(tmp_path / "a.safetensors", header, bytes(size))
    with pytest.raises(InputError, match="not a valid safetensors file"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("data", [b"", b"1234567", (2**63).to_bytes(8, "little"), (9).to_bytes(8, "little") + b"{}"])
def test_files_shorter_than_they_say_are_refused(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="not a valid safetensors file"):
        read_tensors(tmp_path / "a.safetensors")


def test_every_cut_of_a_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.arange(5, dtype="f2"), "b": np.arange(3, dtype="f4")})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError):
            read_tensors(path)
