/* A PKCS#11 module that stands in front of another one and fails when told to.
 *
 * NFTRUST_SHIM_MODULE  the module to forward to
 * NFTRUST_SHIM_CONTROL a file of struct control, shared with the test
 *
 * All parameters of PKCS#11 functions are integers of machine size or less, or
 * pointers, so that one signature of eight words forwards them all under the
 * calling conventions of x86-64 and AArch64.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FUNCTIONS 68 /* of PKCS#11 2.40 */
#define FIRST_SESSION_FUNCTION 15 /* C_GetSessionInfo */
#define LOGIN 18
enum { EVERYWHERE = 1, SESSIONS = 2, WRONG_PIN = 4, HANG = 8, CRASH = 16 };

#define CKR_PIN_INCORRECT 0xA0

struct control {
  volatile uint64_t mode;   /* some of the above */
  volatile uint64_t value;  /* the CK_RV of EVERYWHERE and SESSIONS */
  volatile uint64_t logins; /* calls of C_Login so far */
  volatile uint64_t met;    /* calls that have met a fault so far */
};

typedef unsigned long word;
typedef word (*function)(word, word, word, word, word, word, word, word);
struct list {
  unsigned char version[2];
  function functions[FUNCTIONS];
};

static struct list *real;
static struct list ours;
static struct control *control;

/* Whether the function of this index fails with `value`. */
static int concerned(int index) {
  if (control->mode & EVERYWHERE)
    return 1;
  return control->mode & SESSIONS && index >= FIRST_SESSION_FUNCTION && index != LOGIN;
}

static word forward(int index, word a, word b, word c, word d, word e, word f, word g, word h) {
  if (index >= FIRST_SESSION_FUNCTION) {
    if (control->mode & (HANG | CRASH))
      __sync_fetch_and_add(&control->met, 1);
    while (control->mode & HANG)
      usleep(10000);
    if (control->mode & CRASH)
      *(volatile int *)0 = 1;
  }
  if (index == LOGIN) {
    __sync_fetch_and_add(&control->logins, 1);
    if (control->mode & WRONG_PIN)
      return CKR_PIN_INCORRECT;
  }
  if (concerned(index)) {
    __sync_fetch_and_add(&control->met, 1);
    return (word)control->value;
  }
  return real->functions[index](a, b, c, d, e, f, g, h);
}

#define WRAP(n)                                                                                                  \
  static word wrapped_##n(word a, word b, word c, word d, word e, word f, word g, word h) {                      \
    return forward(n, a, b, c, d, e, f, g, h);                                                                   \
  }
#define SET(n) ours.functions[n] = wrapped_##n;
/* The functions that nftrust calls, by their place in CK_FUNCTION_LIST, but those that start and end the module. */
#define EACH(M)                                                                                                  \
  M(4) M(6) M(12) M(15) M(18) M(20) M(22) M(24) M(26) M(27) M(28) M(42) M(43) M(58) M(59) M(60) M(61) M(62)
EACH(WRAP)

word C_GetFunctionList(struct list **out) {
  if (real == NULL) {
    void *module = dlopen(getenv("NFTRUST_SHIM_MODULE"), RTLD_NOW | RTLD_LOCAL);
    int file = open(getenv("NFTRUST_SHIM_CONTROL"), O_RDWR);
    word (*get)(struct list **) = module ? (word(*)(struct list **))dlsym(module, "C_GetFunctionList") : NULL;
    if (get == NULL || file < 0)
      return 5; /* CKR_GENERAL_ERROR */
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (control == MAP_FAILED || get(&real) != 0)
      return 5;
    memcpy(&ours, real, sizeof ours);
    EACH(SET)
  }
  *out = &ours;
  return 0;
}
