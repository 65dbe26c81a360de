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
  const get = (register: number, mask = 0xff) => {
    const byte = from[register]! & mask;
    return (format & BINARY) !== 0 ? byte : (byte >> 4) * 10 + (byte & 0xf);
  };
  let hours = get(4);
  if ((format & HOURS_24) === 0) hours = (get(4, ~PM & 0xff) % 12) + ((from[4]! & PM) !== 0 ? 12 : 0);
  const [seconds, minutes, day, month] = [get(0), get(2), get(7), get(8)];
  if (seconds > 59 || minutes > 59 || hours > 23 || day < 1 || day > 31 || month < 1 || month > 12) return null;
  return Date.UTC(get(0x32) * 100 + get(9), month - 1, day, hours, minutes, seconds);
}
