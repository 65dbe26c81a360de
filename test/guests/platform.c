/* The platform devices with their interrupts, through the IOAPIC, as an operating system uses them. mode=
 *   uart    interrupt-driven transmit of lines= (20) lines as Linux's 8250 driver does it, then echo of what is typed, in capitals, up to
 *           a '.'; ends with "uart irqs=N left=0"
 *   rtc     seconds= (2) update interrupts on IRQ 8, each one second of the clock later
 *   button  waits for the power button's SCI (level, GSI 9), then powers off by S5 */
#include "guest.h"

#define UART_VECTOR 0x44
#define RTC_VECTOR 0x48
#define SCI_VECTOR 0x49
#define PM1_STATUS 0x600
#define PM1_ENABLE 0x602
#define PM1_CONTROL 0x604
#define POWER_BUTTON 0x100
#define LEVEL 0x8000

static void ioapic(u32 gsi, u32 entry) {
  volatile u32 *select = (volatile u32 *)0xfec00000, *window = (volatile u32 *)0xfec00010;
  *select = 0x11 + 2 * gsi, *window = 0;
  *select = 0x10 + 2 * gsi, *window = entry;
}

/* ---- uart ---- */

static char out[4096];
static volatile u32 out_head, out_tail, uart_irqs, finished;

static void queue(char c) { out[out_head++ % sizeof out] = c; }
static void queue_text(const char *text) {
  while (*text) queue(*text++);
}
static void uart_enable(u8 bits) { outb(COM1 + 1, bits); }

/* serial8250_handle_irq: as long as the UART names a cause. */
static void on_uart(struct frame *frame) {
  (void)frame;
  uart_irqs++;
  while (!(inb(COM1 + 2) & 1)) {
    u8 status = inb(COM1 + 5);
    while (status & 1) {
      char c = inb(COM1);
      queue(c >= 'a' && c <= 'z' ? c - 32 : c);
      if (c == '.') finished = 1;
      uart_enable(3);
      status = inb(COM1 + 5);
    }
    inb(COM1 + 6);
    if (status & 0x20) {
      for (int n = 0; n < 16 && out_tail != out_head; n++) outb(COM1, out[out_tail++ % sizeof out]);
      if (out_tail == out_head) uart_enable(1);
    }
  }
  apic_done();
}

static void uart(void) {
  u64 lines = option("lines", 20);
  on_interrupt(UART_VECTOR, on_uart);
  ioapic(4, UART_VECTOR);
  outb(COM1 + 2, 1 | 0x80);
  outb(COM1 + 4, 0x0b);
  for (u64 n = 0; n < lines; n++) {
    queue_text("line ");
    queue('a' + n % 26);
    queue_text(" of the interrupt-driven console\n");
  }
  uart_enable(3);
  while (out_tail != out_head) wait_interrupt();
  queue_text("type\n");
  uart_enable(3);
  while (!finished || out_tail != out_head) wait_interrupt();
  uart_enable(0);
  put_text("\nuart");
  put_field("irqs", uart_irqs);
  put_field("left", out_head - out_tail);
  put_char('\n');
}

/* ---- rtc ---- */

static volatile u32 rtc_irqs;
static u8 cmos(u8 reg) {
  outb(0x70, reg);
  return inb(0x71);
}
static void on_rtc(struct frame *frame) {
  (void)frame;
  if (cmos(0xc) & 0x10) rtc_irqs++;
  apic_done();
}
static void rtc(void) {
  u64 wanted = option("seconds", 2);
  on_interrupt(RTC_VECTOR, on_rtc);
  ioapic(8, RTC_VECTOR);
  outb(0x70, 0xb), outb(0x71, 0x12);
  while (rtc_irqs == 0) wait_interrupt();
  u8 first = cmos(0);
  while (rtc_irqs < 1 + wanted) wait_interrupt();
  u8 last = cmos(0);
  outb(0x70, 0xb), outb(0x71, 0x02);
  first = (first >> 4) * 10 + (first & 15), last = (last >> 4) * 10 + (last & 15);
  put_text("rtc");
  put_field("irqs", rtc_irqs - 1);
  put_field("seconds", (last + 60 - first) % 60);
  put_char('\n');
}

/* ---- power button ---- */

/* A KVM that interprets ring 0 may signal the end of an interrupt at its delivery: a level that is up then comes once more. So only
 * those with a cause count, and afterwards the line must be quiet. */
static volatile u32 sci_irqs, sci_all;
static void on_sci(struct frame *frame) {
  (void)frame;
  sci_all++;
  if (inw(PM1_STATUS) & POWER_BUTTON) {
    sci_irqs++;
    outw(PM1_STATUS, POWER_BUTTON);
  }
  apic_done();
}
static void button(void) {
  on_interrupt(SCI_VECTOR, on_sci);
  ioapic(9, LEVEL | SCI_VECTOR);
  outw(PM1_ENABLE, POWER_BUTTON);
  put_text("press\n");
  while (!sci_irqs) wait_interrupt();
  asm volatile("sti" ::: "memory");
  for (int n = 0; n < 1000; n++) cpu_relax();
  u32 before = sci_all;
  for (int n = 0; n < 1000; n++) cpu_relax();
  asm volatile("cli" ::: "memory");
  put_text("button");
  put_field("irqs", sci_irqs);
  put_field("later", sci_all - before);
  put_char('\n');
  outw(PM1_CONTROL, 5 << 10 | 1 << 13);
  for (;;) asm volatile("hlt");
}

void run(void) {
  interrupts_on();
  if (option_is("mode", "uart")) uart();
  if (option_is("mode", "rtc")) rtc();
  if (option_is("mode", "button")) button();
}
