// An MCP client with an official JavaScript SDK: `client.mjs URL MODULES PACKAGE`. It authorizes, calls tools, gets more scopes,
// connects a second time, and calls until it is limited. Prints what happens, an event a line.
import { createRequire } from 'node:module'
const [url, modules, sdk] = process.argv.slice(2)
const require = createRequire(`${modules}/`)
const load = (path) => require(`@modelcontextprotocol/${sdk}${path}`)
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = sdk === 'client' ? load('')
  : { ...load('/client/index.js'), ...load('/client/streamableHttp.js'), ...load('/client/auth.js') }

const CALLBACK = 'http://127.0.0.1:1/callback'

// Follows, as a browser does, the redirects of the authorization server up to the one for the client.
async function browse(url) {
  const cookies = new Map()
  while (!String(url).startsWith(CALLBACK)) {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ')
    const response = await fetch(url, { redirect: 'manual', headers: { cookie } })
    for (const line of response.headers.getSetCookie()) cookies.set(...line.split(';')[0].split(/=(.*)/))
    if (!response.headers.has('location')) throw new Error(`${url}: ${response.status} ${await response.text()}`)
    url = new URL(response.headers.get('location'), url)
  }
  return url.searchParams
}

function provider() {
  let client, discovery, tokens, verifier
  return {
    redirectUrl: CALLBACK,
    clientMetadata: { redirect_uris: [CALLBACK], token_endpoint_auth_method: 'none' },
    clientInformation: () => client,
    saveClientInformation: (information) => { client = information },
    discoveryState: () => discovery,
    saveDiscoveryState: (state) => { discovery = state },
    tokens: () => tokens,
    saveTokens: (saved) => { tokens = saved },
    codeVerifier: () => verifier,
    saveCodeVerifier: (saved) => { verifier = saved },
    async redirectToAuthorization(url) {
      console.log(`authorize scope=${url.searchParams.get('scope')} resource=${url.searchParams.get('resource')}`)
      this.callback = await browse(url)
    },
  }
}

// Prints the rejections that the SDK gets.
async function observe(input, init) {
  const response = await fetch(input, init)
  if ([401, 403, 429].includes(response.status)) {
    const field = response.status === 429 ? 'retry-after' : 'www-authenticate'
    console.log(`${response.status} ${field}: ${response.headers.get(field)}`)
  }
  return response
}

async function connect() {
  const authProvider = provider()
  const open = async () => {
    const client = new Client({ name: 'test', version: '1' }, { versionNegotiation: { mode: 'auto' } })
    const transport = new StreamableHTTPClientTransport(new URL(url), { authProvider, fetch: observe })
    await client.connect(transport)
    return { client, transport, authProvider }
  }
  // The SDK sends the user to the authorization server, and leaves the rest to the program: take the code, and try again.
  const retry = async (transport, attempt) => {
    try {
      return await attempt()
    } catch (error) {
      if (!(error instanceof UnauthorizedError)) throw error
      const { callback } = authProvider
      await transport.finishAuth(sdk === 'client' ? callback : callback.get('code'))
      return attempt()
    }
  }
  const first = new StreamableHTTPClientTransport(new URL(url), { authProvider, fetch: observe })
  const { client, transport } = await retry(first, open)
  console.log(`connected ${transport.protocolVersion}`)
  return async (name, args) => {
    const result = await retry(transport, () => client.callTool({ name, arguments: args }))
    console.log(result.content[0].text)
  }
}

const order = { symbol: 'ACME', quantity: 3 }
const first = await connect()
await first('quote', { symbol: 'ACME' })
await first('place_order', order)
await first('quote', { symbol: 'ACME' })
const second = await connect()
await second('place_order', order)
for (const session of [second, first]) {
  // The message of the error ends with the body of the response.
  const print = (error) => console.log(`error: ${JSON.parse(error.message.replace(/^[^{]*/, '')).error.message}`)
  await session('place_order', order).catch(print)
}
process.exit()
