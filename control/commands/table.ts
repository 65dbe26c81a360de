// All QMP commands: one table. query-commands lists it.
import type { QmpCommands } from '../qmp-schema.ts';
import { machineCommands } from './machine.ts';
import { migrationCommands } from './migration.ts';

const named: QmpCommands = { ...machineCommands, ...migrationCommands };

export const qmpCommands: QmpCommands = {
  ...named,
  'query-commands': {
    arguments: {},
    run: () => ['qmp_capabilities', 'query-commands', ...Object.keys(named)].sort().map((name) => ({ name })),
  },
};
