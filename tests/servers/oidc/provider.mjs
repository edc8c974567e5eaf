// An OpenID provider for the tests: `node provider.mjs CONFIG` serves what the JSON file CONFIG says, over TLS, and reads
// it again on SIGHUP, as when an issuer rotates its keys. It tells each request for its keys on standard output.
//
// CONFIG: { host, port, certificate, privateKey (PEM files), jwks (private keys; the first of an algorithm signs),
//           clientId, clientSecret, algorithm, roles }

import { readFileSync } from 'node:fs';
import https from 'node:https';

import Provider from 'oidc-provider';

const file = process.argv[2];

function load() {
  const config = JSON.parse(readFileSync(file, 'utf8'));
  const provider = new Provider(`https://${config.host}:${config.port}`, {
    jwks: { keys: config.jwks },
    clients: [
      {
        client_id: config.clientId,
        client_secret: config.clientSecret,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        id_token_signed_response_alg: config.algorithm,
      },
    ],
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'score',
          audience: resource,
          accessTokenFormat: 'jwt',
          accessTokenTTL: 600,
          jwt: { sign: { alg: config.algorithm } },
        }),
      },
    },
    extraTokenClaims: () => ({ roles: config.roles }),
  });
  return { config, handle: provider.callback() };
}

let current = load();
process.on('SIGHUP', () => {
  current = load();
  console.log('loaded');
});

const { config } = current;
const server = https.createServer(
  { cert: readFileSync(config.certificate), key: readFileSync(config.privateKey) },
  (request, response) => {
    if (request.url === '/jwks') console.log('asked');
    current.handle(request, response);
  },
);
server.listen(config.port, config.host, () => console.log('ready'));
