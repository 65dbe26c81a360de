// Runs inside a lab host: speaks QMP to a ferry there. argv: path of the socket. Each line of stdin is a command; its answer and each event
// become a line of stdout ({"return": ...}, {"error": ...}, {"event": ...}). Ends with stdin, or when the other side closes.
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { QmpClient } from '../../../control/qmp-client.ts';

const client = await QmpClient.connect(process.argv[2] ?? '');
const print = (value: object) => console.log(JSON.stringify(value));
client.onEvent(print);
print({ return: 'connected' });
const commands = createInterface({ input: process.stdin });
commands.on('line', async (command) => {
  try {
    print({ return: await client.execute(command) });
  } catch (error) {
    print({ error: error instanceof Error ? error.message : String(error) });
  }
});
commands.on('close', () => client.close());
while (!client.closed) await sleep(100);
process.exit(0);
