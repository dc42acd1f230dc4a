"""Our packed record inside a tf.Example, the form in which tensorflow-datasets stores an example, without TensorFlow.

A tf.Example is the protocol buffer Example{1: Features{1: entry{1: name, 2: Feature{1: BytesList{1: value}}}}}. Its entries
are a map, which the protobuf library writes in an order that differs between processes, and so would the sha256 of a file.
"""

from collections.abc import Iterator, Mapping

FEATURE = "record"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def _field(number: int, *parts: bytes) -> list[bytes]:
    """One length-delimited field, as pieces, so that a large value is copied once."""
    return [_varint(number << 3 | 2), _varint(sum(map(len, parts))), *parts]


def tf_example(features: Mapping[str, bytes]) -> bytes:
    """The serialised tf.Example of these features, in their order."""
    entries = []
    for name, value in features.items():
        entries += _field(1, *_field(1, name.encode()), *_field(2, *_field(1, *_field(1, value))))
    return b"".join(_field(1, *entries))


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, value) of the length-delimited fields. Raises ValueError for any other field."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        size, at = _read_varint(data, at)
        if key & 7 != 2 or at + size > len(data):
            raise ValueError(f"byte {at}: not a field of a tf.Example")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data):
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return number, at
    raise ValueError(f"ends at byte {at}, inside a number")


def record_in(data: bytes) -> bytes:
    """The packed record in a tf.Example, or `data` itself if it is a packed record. Raises ValueError if there is none.

    A tf.Example begins with the byte 0x0a. A packed record, which is a msgpack map, never does.
    """
    if data[:1] != b"\n":
        return data
    found = None
    for _, features in _fields(memoryview(data)):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            if bytes(parts.get(1, b"")) == FEATURE.encode():
                found = parts[2]
    if found is None:
        raise ValueError(f"the tf.Example has no feature {FEATURE!r}")
    ((_, values),) = _fields(found)
    ((_, value),) = _fields(values)
    return bytes(value)
