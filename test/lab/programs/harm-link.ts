// Runs in a lab host, between a source and a `ferry receive` of this host: test/fakes/harm-link.ts on TCP. argv: HarmOrder as JSON. Says
// "listening" and "struck", one a line; cuts both connections when it is told "cut".
import { createInterface } from 'node:readline';
import { type Fate, Link } from '../../fakes/harm-link.ts';

export interface HarmOrder {
  readonly port: number;
  /** The port of `ferry receive` here. */
  readonly target: number;
  /** Hexadecimal. */
  readonly marker: string;
  readonly direction: 'forward' | 'back';
  readonly occurrence: number;
  readonly after?: number;
  readonly fate: Fate;
}

const { port, target, marker, fate, ...place } = JSON.parse(process.argv[2] ?? '') as HarmOrder;
const link = await Link.open(
  { host: '0.0.0.0', port },
  { host: '127.0.0.1', port: target },
  {
    ...place,
    marker: Buffer.from(marker, 'hex'),
    strike: () => {
      console.log('struck');
      return fate;
    },
  },
);
console.log('listening');
createInterface({ input: process.stdin }).on('line', (line) => {
  if (line === 'cut') link.cut();
});
