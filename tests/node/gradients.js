// Sends a GraphDef and reads the gradient: node gradients.js ADDRESS GRAPH.pb Y X VALUE...
//
// The protos are loaded as they are; nothing is generated.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const PROTOS = path.join(__dirname, "..", "..", "protos");
const definition = loader.loadSync("gradserve/v1/gradient_service.proto", {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { GradientService } = grpc.loadPackageDefinition(definition).gradserve.v1;

const [address, graph, y, x, ...values] = process.argv.slice(2);
const client = new GradientService(address, grpc.credentials.createInsecure());
const floats = Float32Array.from(values, Number);

const request = {
  source: { inline: { serialized: fs.readFileSync(graph) } },
  feeds: [
    {
      name: x,
      value: {
        tensor: {
          dtype: "DT_FLOAT",
          tensor_shape: { dim: [{ size: floats.length }] },
          tensor_content: Buffer.from(floats.buffer),
        },
      },
    },
  ],
  gradients: { ys: [y], xs: [x] },
  return_ys: true,
};

function read(value) {
  const bytes = Uint8Array.from(value.tensor.tensor_content);
  return Array.from(new Float32Array(bytes.buffer));
}

client.ComputeGradients(request, { deadline: Date.now() + 30000 }, (error, response) => {
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
  } else {
    const gradients = response.gradients.map((gradient) =>
      gradient.kind === "dense" ? read(gradient.dense) : gradient.none.reason,
    );
    console.log(JSON.stringify({ gradients, ys: response.ys.map((entry) => read(entry.value)) }));
  }
  client.close();
});
