// QMP commands about the machine's run state. Registered in commands/table.ts.
import { optional, type QmpCommands } from '../qmp-schema.ts';
import { PACKAGE, QEMU_VERSION } from '../qmp-session.ts';

export const machineCommands: QmpCommands = {
  'query-version': { arguments: {}, run: () => ({ qemu: QEMU_VERSION, package: PACKAGE }) },
  'query-name': { arguments: {}, run: (vm) => (vm.name === null ? {} : { name: vm.name }) },
  'query-kvm': { arguments: {}, run: () => ({ enabled: true, present: true }) },
  'query-status': {
    arguments: {},
    run: (vm) => ({ status: vm.runState, singlestep: false, running: vm.runState === 'running' }),
  },
  stop: { arguments: {}, run: (vm) => vm.stop() },
  cont: { arguments: {}, run: (vm) => vm.cont() },
  system_powerdown: { arguments: {}, run: (vm) => vm.machine.powerdown() },
  system_reset: { arguments: {}, run: (vm) => vm.machine.reset('host-qmp-system-reset') },
  quit: { arguments: {}, run: (vm) => vm.quit() },
  'query-cpus-fast': {
    arguments: {},
    run: (vm) =>
      Array.from({ length: vm.machine.config.cpus }, (_, index) => ({
        'cpu-index': index,
        'qom-path': `/machine/unattached/device[${index}]`,
        target: 'x86_64',
        props: { 'socket-id': 0, 'core-id': index, 'thread-id': 0 },
      })),
  },
  'x-ferry-devices': {
    arguments: { id: optional('string') },
    run: (vm, args) =>
      vm.machine.devices
        .filter((device) => args['id'] === undefined || device.id === args['id'])
        .map((device) => ({ id: device.id, type: device.type, blocker: device.live?.blocker() ?? null })),
  },
};
