// Asks a twinfer server for one answer and prints it as JSON:
//
//   node infer.js 127.0.0.1:50051 five.png fve
//
// By TLS where TWINFER_TLS_CA names a file with the server's authority; TWINFER_TLS_CLIENT_CERT and TWINFER_TLS_CLIENT_KEY are
// this client's own certificate and key, for a server that wants them. All of them in PEM. TWINFER_TOKEN is the token of this
// caller, for a server that knows its callers.
//
// The contract is read from protos/ as it stands; nothing is generated.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const MAX_MESSAGE_BYTES = 32 * 2 ** 20;
const TIMEOUT_MS = 30_000;

const contract = protoLoader.loadSync('twinfer/v1/ensemble_service.proto', {
  includeDirs: [path.join(__dirname, '..', '..', 'protos')],
  keepCase: true, // fields keep the contract's names
  enums: String,
  longs: Number,
  defaults: true,
  oneofs: true, // `prediction.task` says which one is set
});
const { EnsembleService } = grpc.loadPackageDefinition(contract).twinfer.v1;

// Without a policy that lists its code a status is final, and the server's pushback is ignored (gRFC A6).
const serviceConfig = {
  methodConfig: [
    {
      name: [{ service: 'twinfer.v1.EnsembleService' }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: '0.1s',
        maxBackoff: '2s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE', 'RESOURCE_EXHAUSTED'],
      },
    },
  ],
};

// This machine itself: no proxy knows anything of it, and a token may go there in the clear.
const LOCAL = /^(unix:|localhost(:|$)|127\.|\[::1\])/;

// How the channel is secured, and the metadata of calls that prove who asks.
function readAccess(address, { TWINFER_TLS_CA, TWINFER_TLS_CLIENT_CERT, TWINFER_TLS_CLIENT_KEY, TWINFER_TOKEN }) {
  const read = (file) => (file ? fs.readFileSync(file) : null);
  const credentials = TWINFER_TLS_CA
    ? grpc.credentials.createSsl(read(TWINFER_TLS_CA), read(TWINFER_TLS_CLIENT_KEY), read(TWINFER_TLS_CLIENT_CERT))
    : grpc.credentials.createInsecure();
  const metadata = new grpc.Metadata();
  if (TWINFER_TOKEN && !TWINFER_TLS_CA && !LOCAL.test(address)) {
    throw new Error(`a token would travel to ${address} in the clear; allowed: TWINFER_TLS_CA, or this machine`);
  }
  if (TWINFER_TOKEN) metadata.set('authorization', `Bearer ${TWINFER_TOKEN}`);
  return { credentials, metadata };
}

function connect(address, credentials) {
  return new EnsembleService(address, credentials, {
    'grpc.max_send_message_length': MAX_MESSAGE_BYTES,
    'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
    'grpc.per_rpc_retry_buffer_size': MAX_MESSAGE_BYTES, // else what is larger than 256 KiB is never sent again
    'grpc.enable_http_proxy': LOCAL.test(address) ? 0 : 1,
    'grpc.service_config': JSON.stringify(serviceConfig),
  });
}

// Resolves to an InferResponse; rejects with gRPC's ServiceError.
function infer(client, metadata, inputs, options = {}) {
  const deadline = Date.now() + TIMEOUT_MS; // always one: a call without it may wait for ever
  return new Promise((resolve, reject) => {
    client.Infer({ inputs, options }, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// Returns the server's own account of a failed call, or what the status alone says: a connection may have been refused.
function describeError(error) {
  const [sent] = error.metadata?.get('twinfer-error-bin') ?? [];
  const details = sent ? contract['twinfer.v1.Error'].deserialize(sent) : { reason: 'REASON_UNSPECIFIED', text: error.details };
  return { ...details, code: grpc.status[error.code] };
}

async function main([address, imagePath, text]) {
  if (text === undefined) {
    console.error('usage: node infer.js HOST:PORT IMAGE TEXT');
    return 2;
  }
  let client;
  try {
    const { credentials, metadata } = readAccess(address, process.env);
    client = connect(address, credentials);
    const inputs = { image: { image: fs.readFileSync(imagePath) }, text: { text } };
    console.log(JSON.stringify(await infer(client, metadata, inputs, { member_predictions: true })));
    return 0;
  } catch (error) {
    if (!(error.metadata instanceof grpc.Metadata)) {
      console.error(error.message); // not a call's: an unreadable image, say
      return 2;
    }
    console.error(JSON.stringify({ error: describeError(error) }));
    return 1;
  } finally {
    client?.close();
  }
}

main(process.argv.slice(2)).then((status) => {
  process.exitCode = status;
});
