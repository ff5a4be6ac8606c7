/* Wine before 9 lacks this library of Windows, and with it the one function that Rust's std takes from it. For tests
 * under wine alone: Windows has its own. */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID, ULONG); /* RtlGenRandom */

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE to, SIZE_T length)
{
    return SystemFunction036(to, (ULONG)length) ? TRUE : FALSE;
}
