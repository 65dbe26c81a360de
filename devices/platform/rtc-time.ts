// The time registers of the CMOS clock: between milliseconds since 1970 (UTC) and register bytes, BCD or binary, 24 or 12 hours.
// Pure functions, called by rtc.ts. MC146818A datasheet, table 2; the century byte is the one that the FADT names.

/** Seconds, minutes, hours, day of week, day, month, year, century. */
export const TIME_REGISTERS: readonly number[] = [0, 2, 4, 6, 7, 8, 9, 0x32];
const PM = 0x80;
/** Register B, bits 2 and 1. */
const BINARY = 0x04;
const HOURS_24 = 0x02;

export function encodeTime(milliseconds: number, format: number, into: Uint8Array): void {
  const date = new Date(milliseconds);
  const hours = date.getUTCHours();
  const put = (register: number, value: number) => {
    into[register] = (format & BINARY) !== 0 ? value : ((value / 10) << 4) | (value % 10);
  };
  put(0, date.getUTCSeconds());
  put(2, date.getUTCMinutes());
  if ((format & HOURS_24) !== 0) put(4, hours);
  else {
    put(4, hours % 12 === 0 ? 12 : hours % 12);
    if (hours >= 12) into[4] = into[4]! | PM;
  }
  put(6, date.getUTCDay() + 1);
  put(7, date.getUTCDate());
  put(8, date.getUTCMonth() + 1);
  put(9, date.getUTCFullYear() % 100);
  put(0x32, Math.floor(date.getUTCFullYear() / 100));
}

/** null: no such time. */
export function decodeTime(from: Uint8Array, format: number): number | null {
  const get = (register: number) => decode(from[register]!, format);
  const [seconds, minutes, hours, day, month] = [get(0), get(2), decodeHour(from[4]!, format), get(7), get(8)];
  if (seconds > 59 || minutes > 59 || hours > 23 || day < 1 || day > 31 || month < 1 || month > 12) return null;
  return Date.UTC(get(0x32) * 100 + get(9), month - 1, day, hours, minutes, seconds);
}

/** Time of day; null matches always. */
export interface Alarm {
  readonly hour: number | null;
  readonly minute: number | null;
  readonly second: number | null;
}

const SECOND_ALARM = 1;
const MINUTE_ALARM = 3;
const HOUR_ALARM = 5;
/** 11xxxxxx in an alarm register: don't care. */
const DONT_CARE = 0xc0;

export function decodeAlarm(from: Uint8Array, format: number): Alarm {
  const unlessAny = (register: number, get: (byte: number, format: number) => number) => {
    const byte = from[register]!;
    return (byte & DONT_CARE) === DONT_CARE ? null : get(byte, format);
  };
  return {
    hour: unlessAny(HOUR_ALARM, decodeHour),
    minute: unlessAny(MINUTE_ALARM, decode),
    second: unlessAny(SECOND_ALARM, decode),
  };
}

/** `second`: since 1970. Called for every second that went by, so it allocates nothing. */
export function alarmMatches(alarm: Alarm, second: number): boolean {
  const ofDay = ((second % 86_400) + 86_400) % 86_400;
  if (alarm.second !== null && alarm.second !== ofDay % 60) return false;
  if (alarm.minute !== null && alarm.minute !== Math.floor(ofDay / 60) % 60) return false;
  return alarm.hour === null || alarm.hour === Math.floor(ofDay / 3600);
}

function decode(byte: number, format: number): number {
  return (format & BINARY) !== 0 ? byte : (byte >> 4) * 10 + (byte & 0xf);
}

function decodeHour(byte: number, format: number): number {
  if ((format & HOURS_24) !== 0) return decode(byte, format);
  return (decode(byte & ~PM & 0xff, format) % 12) + ((byte & PM) !== 0 ? 12 : 0);
}
