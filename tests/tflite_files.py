"""TFLite files made by hand, tensor by tensor: what is in them is known without any converter."""

from __future__ import annotations

import pathlib

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


class Maker:
    """Collects tensors and operators of one graph and writes them as a TFLite file."""

    def __init__(self) -> None:
        self.model = schema.ModelT(
            version=3, buffers=[schema.BufferT()], operatorCodes=[], metadata=[]
        )
        self.graph = schema.SubGraphT(name=b"main", tensors=[], operators=[])

    def tensor(
        self, name, shape, dtype="float32", data=None, scales=(), zeros=(), axis=0, signature=None
    ):
        """Add a tensor and return its number; `data` (bytes or an array) makes it a constant."""
        number = 0
        if data is not None:
            content = np.frombuffer(bytes(np.ascontiguousarray(data).data), "uint8")
            self.model.buffers.append(schema.BufferT(data=content))
            number = len(self.model.buffers) - 1
        quantization = schema.QuantizationParametersT(
            scale=list(scales) or None, zeroPoint=list(zeros) or None, quantizedDimension=axis
        )
        tensor = schema.TensorT(
            name=name.encode(),
            shape=list(shape),
            type=vars(schema.TensorType)[dtype.upper()],
            buffer=number,
            quantization=quantization,
            shapeSignature=None if signature is None else list(signature),
        )
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, name, inputs, outputs, custom=None):
        """Add an operator by its name in the schema."""
        code = vars(schema.BuiltinOperator)[name]
        self.model.operatorCodes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=1, customCode=custom
            )
        )
        operator = schema.OperatorT(
            opcodeIndex=len(self.model.operatorCodes) - 1,
            inputs=list(inputs),
            outputs=list(outputs),
        )
        if name == "FULLY_CONNECTED":
            operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
            operator.builtinOptions = schema.FullyConnectedOptionsT()
        self.graph.operators.append(operator)

    def metadata(self, name, content):
        """Add a metadata buffer."""
        self.model.buffers.append(schema.BufferT(data=np.frombuffer(content, "uint8")))
        self.model.metadata.append(
            schema.MetadataT(name=name.encode(), buffer=len(self.model.buffers) - 1)
        )

    def write(self, path, inputs, outputs, *, signed=True) -> pathlib.Path:
        """Write the file; `inputs` and `outputs` are dicts of name to tensor number."""
        self.graph.inputs, self.graph.outputs = list(inputs.values()), list(outputs.values())
        self.model.subgraphs = [self.graph]
        if signed:
            maps = [
                [schema.TensorMapT(name=n.encode(), tensorIndex=i) for n, i in part.items()]
                for part in (inputs, outputs)
            ]
            self.model.signatureDefs = [
                schema.SignatureDefT(
                    inputs=maps[0], outputs=maps[1], signatureKey=b"serving_default"
                )
            ]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        path.write_bytes(builder.Output())
        return path


WEIGHTS = np.array([[1, -2, 3, 4], [5, 6, -7, 8], [-9, 10, 11, -12]], "int8")  # (out, in)


def int8_dense(path, *, island=(), weights=WEIGHTS, after="INT8") -> pathlib.Path:
    """Write y = x · Wᵀ in int8: x of step 0.5 around 0, W of step 0.1, y of step 0.25 around 3.

    `island` names float operators between the product and the end, as a converter leaves them.
    """
    maker = Maker()
    x = maker.tensor("serving_default_x:0", [1, 4], "int8", scales=[0.5], zeros=[0])
    w = maker.tensor("net_1/dense_1/MatMul", [3, 4], "int8", weights, scales=[0.1], zeros=[0])
    y = maker.tensor("net_1/dense_1/add", [1, 3], "int8", scales=[0.25], zeros=[3])
    maker.operator("FULLY_CONNECTED", [x, w, -1], [y])
    if island:
        floats = maker.tensor("net_1/dense_1/add1", [1, 3])
        maker.operator("DEQUANTIZE", [y], [floats])
        for name in island:
            made = maker.tensor(f"net_1/odd_1/{name.title()}", [1, 3])
            maker.operator(name, [floats], [made])
            floats = made
        y = maker.tensor("StatefulPartitionedCall:0", [1, 3], "int8", scales=[0.25], zeros=[3])
        maker.operator("QUANTIZE", [floats], [y])
    return maker.write(path, {"x": x}, {"y": y})
