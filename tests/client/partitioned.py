"""A checkpoint of partitioned variables, as `tf.compat.v1.train.Saver` of TensorFlow 2.21 wrote it.

`layer/w` is arange(15) of shape [5, 3] in two slices of rows, `layer/v` arange(12) of shape [3, 4] in three slices of
columns, both float32; `long` is arange(300) % 251 in uint8, in two slices; `b` is arange(4) in float32, in one piece.
"""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

_INDEX = (
    "c-muNVB=tvV&Y(A5D;a^NvupQ(l29RWMpb+ZfN3Q6ygwK;$Q}1CItZv3Df)2qrUSoi8eJN$uKHtXz-"
    "XW5UigBlxaqlF#*c-2)n#x=M*i68rqDcfLXyoL&ek}@PZ-_i)eEbT#gAWmjbjfA&c`X6PIv)UOG@aW5a=I94tbtLd+b~7!_(XrZJ"
    "kn)SH*g$s%%K8nVnJCXm$O7VSd}jQmMJGg*M<v1kaGPVRke#K5ix^(B%+Sgbg>m;{)Cn8}I@%wpkS5@3Y0nFScx7?sMQI#@xv;5w"
    "Lrsz553Kx{^4DWF@SPFcfb#mdDjFpUwYmJR4IAd3MAzy!a-%ujI6flmuJFfcObGJIo#i_QMYBmJ9+ql1~BfglL~-"
    "O#O4>V6vl8pB7n"
)
_DATA = (
    "c-"
    "muN0D%U3AmIQ+4h(R91CYG{#CK$15O9RZ9{^$nM~J!yKy2X1fT16z?*LQ{Og~5;NWB9P2LN$`BLgE7GYcylI|nBhHxDl#zkr~Su!"
    "yLbxP+vXw2Z8ryn>>VvWlvjx`w8fwvMizzJZ~Uv5BdfxrL>bwT-"
    "Qvy@R8Zvx}>nyN9Qjw~w!%e?VYRa7buactm7WbWChqd_rPUa!P7idPZhec1~_yenDYTaY<=ec|~PabxmzueM4hYb4zPmdq-zicTa"
    "C$|AdK?CQq3<ZTgIvvu4kkJ8%Aig^Lz1S-Ncbij}KYuUWfp{f3R3HgDOwZTpU$yLRu{yKn!2gNF_uIeP5)iIb;JpE-"
    "N({Dq5`E?>EN?fQ+Iw{G9Ld++{(hmRgVdHU@6i<hrnzj^!a{fCdAK7aZ8?fZ|Pzex5v00vx-pa"
)


def write(prefix: Path) -> Path:
    """Writes the two files of the checkpoint."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("index", _INDEX), ("data-00000-of-00001", _DATA)):
        prefix.with_name(f"{prefix.name}.{suffix}").write_bytes(zlib.decompress(base64.b85decode(text)))
    return prefix
