// QMP commands about migration; shapes and words from qemu-compat.md D. Registered in commands/table.ts.
import type { MigrationProgress } from '../../migration/api.ts';
import { machineBlockers } from '../outgoing.ts';
import { optional, type QmpCommands, QmpError, required } from '../qmp-schema.ts';
import type { VmSession } from '../vm-session.ts';

const PAGE = 4096;

function ramOf(progress: MigrationProgress): object {
  return {
    total: progress.totalBytes,
    remaining: progress.remainingBytes,
    transferred: progress.sentBytes,
    duplicate: progress.zeroPages,
    skipped: 0,
    normal: progress.normalPages,
    'normal-bytes': progress.normalPages * PAGE,
    'dirty-pages-rate': progress.dirtyPagesPerSecond,
    mbps: (progress.bytesPerSecond * 8) / 1e6,
    'dirty-sync-count': progress.round,
    'postcopy-requests': 0,
    'page-size': PAGE,
    'multifd-bytes': 0,
    'pages-per-second': Math.round(progress.bytesPerSecond / PAGE),
    'precopy-bytes': progress.sentBytes,
    'downtime-bytes': 0,
    'postcopy-bytes': 0,
    'dirty-sync-missed-zero-copy': 0,
  };
}

/** Source side. The report of an ended migration stays readable under x-ferry until the next one starts. */
function queryOutgoing(vm: VmSession): object {
  const { status, error, migration, outcome } = vm.outgoing;
  const blockers = vm.machineOrNull === null ? [] : machineBlockers(vm.machineOrNull);
  const blocked = blockers.length === 0 ? {} : { 'blocked-reasons': blockers };
  if (status === 'none') return blocked;
  if (migration === null) return { status, ...(error === null ? {} : { 'error-desc': error }), ...blocked };
  const progress = migration.progress;
  const live = outcome === null;
  return {
    status,
    'total-time': Math.round(progress.elapsedMs),
    ...(live ? { 'expected-downtime': Math.round(progress.expectedDowntimeMs ?? 0) } : {}),
    ...(status === 'completed' && outcome !== null ? { downtime: Math.round(outcome.report.downtimeMs) } : {}),
    'setup-time': 0,
    ...(error === null ? {} : { 'error-desc': error }),
    ram: ramOf(progress),
    ...(progress.deviceBytes > 0 ? { vfio: { transferred: progress.deviceBytes } } : {}),
    ...blocked,
    'x-ferry': { progress, outcome },
  };
}

function queryMigrate(vm: VmSession): object {
  if (vm.listenUri === null || vm.machineOrNull !== null) return queryOutgoing(vm);
  const status = vm.incoming?.status ?? 'setup';
  return { status, 'socket-address': [socketAddress(vm.listenUri)] };
}

function socketAddress(uri: string): object {
  if (uri.startsWith('unix:')) return { type: 'unix', path: uri.slice(5) };
  const at = uri.lastIndexOf(':');
  return { type: 'inet', host: uri.slice(4, at), port: uri.slice(at + 1), ipv4: true };
}

export const migrationCommands: QmpCommands = {
  migrate: {
    arguments: {
      uri: required('string'),
      detach: optional('bool'),
      resume: optional('bool'),
      blk: optional('bool'),
      inc: optional('bool'),
    },
    run: (vm, args) => {
      for (const name of ['resume', 'blk', 'inc']) {
        if (args[name] === true) throw new QmpError('GenericError', `Parameter '${name}' is not supported here`);
      }
      vm.migrate(args['uri'] as string);
    },
  },
  'migrate-incoming': {
    arguments: { uri: required('string') },
    // Returns when it listens; the arrival is told by events and query-migrate.
    run: (vm, args) => vm.receive(args['uri'] as string),
  },
  'query-migrate': { arguments: {}, run: queryMigrate },
  migrate_cancel: { arguments: {}, run: (vm) => vm.outgoing.cancel() },
  'query-migrate-capabilities': { arguments: {}, run: (vm) => vm.settings.capabilities() },
  'migrate-set-capabilities': {
    arguments: { capabilities: required('array') },
    run: (vm, args) => {
      if (vm.outgoing.busy) throw new QmpError('GenericError', "There's a migration process in progress");
      vm.settings.setCapabilities(args['capabilities'] as unknown[]);
    },
  },
  'query-migrate-parameters': { arguments: {}, run: (vm) => vm.settings.parameters() },
  'migrate-set-parameters': {
    arguments: {
      'downtime-limit': optional('int'),
      'max-bandwidth': optional('size'),
      'x-timeout': optional('int'),
      'x-device-log': optional('bool'),
      'x-test-drop': optional('string'),
    },
    run: (vm, args) => {
      vm.settings.setParameters(args);
      vm.outgoing.limitsChanged();
    },
  },
};
