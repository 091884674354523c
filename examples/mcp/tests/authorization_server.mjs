// A small authorization server: oidc-provider with dynamic registration, in which the user alice approves everything. Prints its
// address. It issues JWTs for the resource that a client names (RFC 8707).
import { generateKeyPairSync } from 'node:crypto'
import { createServer } from 'node:http'
import { json } from 'node:stream/consumers'
const { default: Provider } = await import(process.env.TOLLGATE_OIDC_PROVIDER)

// Standard output has the address only.
console.info = console.warn

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
const server = createServer()
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`
  const provider = new Provider(issuer, {
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), kid: '1', use: 'sig', alg: 'RS256' }] },
    clients: [{ client_id: 'app', client_secret: 's3cret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [] }],
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    interactions: { url: (_, interaction) => `/approve/${interaction.uid}` },
    loadExistingGrant: async ({ oidc }) => {
      const grant = new oidc.provider.Grant({ clientId: oidc.client.clientId, accountId: oidc.session.accountId })
      grant.addOIDCScope(oidc.params.scope)
      for (const resource of [oidc.params.resource].flat().filter(Boolean)) grant.addResourceScope(resource, oidc.params.scope)
      await grant.save()
      return grant
    },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      registration: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, audience) => ({ audience, scope: 'read trade', accessTokenFormat: 'jwt' }),
      },
    },
  })
  const handle = provider.callback()
  server.on('request', async (request, response) => {
    if (request.url.startsWith('/approve/')) {
      return provider.interactionFinished(request, response, { login: { accountId: 'alice' }, consent: {} })
    }
    if (request.method === 'POST' && request.url === '/reg') {
      // The clients register with the scope of their first authorization, and later request more.
      const { scope, ...metadata } = await json(request)
      request.body = metadata
    }
    return handle(request, response)
  })
  console.log(issuer)
})
