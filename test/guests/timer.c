/* Interrupts that wake a halted vCPU: count= (20) of the PIT through the PIC, then of the local APIC timer.
 *   pit fired=20
 *   apic fired=20 */
#include "guest.h"

static volatile u64 pit, apic;

static void on_pit(struct frame *frame) {
  (void)frame;
  pit++;
  outb(0x20, 0x20);
}
static void on_apic(struct frame *frame) {
  (void)frame;
  apic++;
  apic_done();
}

/* 8259A: ICW1-4, then only IRQ 0 unmasked; LINT0 takes the PIC's INTR (ExtINT). 8254: channel 0, mode 2. */
static void pit_on(u32 hz) {
  u32 divisor = 1193182 / hz;
  outb(0x20, 0x11), outb(0x21, PIC_VECTOR), outb(0x21, 4), outb(0x21, 1), outb(0x21, 0xfe);
  apic_write(0x350, 0x700);
  outb(0x43, 0x34), outb(0x40, divisor), outb(0x40, divisor >> 8);
}

void run(void) {
  u64 count = option("count", 20);
  on_interrupt(PIC_VECTOR, on_pit);
  on_interrupt(TIMER_VECTOR, on_apic);
  interrupts_on();
  pit_on(200);
  while (pit < count) wait_interrupt();
  outb(0x21, 0xff);
  put_text("pit");
  put_field("fired", pit);
  put_char('\n');
  timer_every(2000);
  while (apic < count) wait_interrupt();
  put_text("apic");
  put_field("fired", apic);
  put_char('\n');
}
