/* The founding of etcd by three members: every schedule of
 *
 *   - questions and answers that take any time, arrive or get lost, in any order;
 *   - proposals of any record whose incarnations have existed, by anybody, at
 *     any time, late, repeated;
 *   - kills, which take the memory and leave the disk;
 *   - machines imaged again (LOSSES in all), also between question and answer,
 *     and between an answer and what is done with it;
 *   - calm: from every state there must be a way to a founding without a further
 *     fault, or a majority of a founding that had started is lost.
 *
 * The rules are those of decide.go and member.go, under the same names. A
 * machine that loses only its data has, like one that is imaged again, another
 * incarnation, so the model has one event for both.
 *
 * Run by founding_test.go. Each macro below breaks one rule, and must be found:
 *
 *   MAJORITY   found when a majority holds the record
 *   KEEP       the incarnation is kept when the data is lost
 *   UNSYNCED   a record is told before it is on the disk
 *   CACHED     answers count whenever they were asked for
 *   AGAIN      a member that has data takes part in a founding
 *   FIXED      the token of the founding is not the record's but always the same
 *   NEW        etcd makes its own data, as a new cluster, and is killed meanwhile
 *   FIRST      a record that is held is never replaced
 *   ALONE      nobody joins a founding that another member has begun
 */
#ifndef LOSSES
#define LOSSES 2
#endif
#define N 3

/* A record is the incarnations of the members, two bits each; 0 is none. */
#define RECORD(a, b, c) ((a) * 16 + (b) * 4 + (c))
#define NAMED(r, i)     (((r) >> (4 - 2 * (i))) & 3)
/* An answer is a record that is held, or one under which there is data. */
#define NOTHING 128
#define HOLDS(r) (r)
#define RUNS(r)  (64 + (r))
#define IS_DATA(a) (((a) & 192) == 64)
#define RECORD_OF(a) ((a) & 63)
#define PAIR(i, j) ((i) * N + (j))

byte incarnation[N] = 1;
byte disk[N];    /* the record on the disk */
byte held[N];    /* the record that the member believes to hold */
byte data[N];    /* the record whose data there is */
bool mail[9];    /* a question is under way, and an answer to it will count */
byte heard[9];   /* answers that were heard and count; 0: none */
byte losses;
bool ended;
byte torn[N];    /* NEW: the data has a log that never elects */

/* Ghosts, for the assertions only. */
byte was[N];     /* the member IDs whose data is lost, a bit for each */
#ifdef FIXED
#define ID(r, i) 1   /* of a token that is always the same */
#else
#define ID(r, i) NAMED(r, i)  /* the token is the record's: another incarnation is another ID */
#endif

/* What was asked before a write counts no more. */
inline forget(i) {
#ifndef CACHED
	heard[PAIR(i, 0)] = 0; heard[PAIR(i, 1)] = 0; heard[PAIR(i, 2)] = 0;
	mail[PAIR(i, 0)] = 0; mail[PAIR(i, 1)] = 0; mail[PAIR(i, 2)] = 0;
#endif
	skip
}

/* A kill: the memory is gone, and with it all that was asked. */
inline restart(i) {
	heard[PAIR(i, 0)] = 0; heard[PAIR(i, 1)] = 0; heard[PAIR(i, 2)] = 0;
	mail[PAIR(i, 0)] = 0; mail[PAIR(i, 1)] = 0; mail[PAIR(i, 2)] = 0;
	held[i] = disk[i]
}

inline write(i, r) {
	held[i] = r;
#ifndef UNSYNCED
	disk[i] = r;
#endif
	forget(i)
}

/* What member j tells: of a member with data, the record on its disk. */
#define TELLS(j) (data[j] -> RUNS(held[j]) : (held[j] -> HOLDS(held[j]) : NOTHING))

#ifdef AGAIN
#define BLANK(i) (true)
#else
#define BLANK(i) (data[i] == 0)
#endif

#ifdef FIRST
#define MAY_HOLD(i, r) (BLANK(i) && NAMED(r, i) == incarnation[i] && held[i] == 0)
#else
#define MAY_HOLD(i, r) (BLANK(i) && NAMED(r, i) == incarnation[i] && held[i] != (r))
#endif

#define OTHER(i) ((i + 1) % N)
#define THIRD(i) ((i + 2) % N)
#define SAYS(i, j, a) (heard[PAIR(i, j)] == (a))

#ifdef MAJORITY
#define ALL_HOLD(i) (SAYS(i, OTHER(i), HOLDS(held[i])) || SAYS(i, THIRD(i), HOLDS(held[i])))
#else
#define ALL_HOLD(i) (SAYS(i, OTHER(i), HOLDS(held[i])) && SAYS(i, THIRD(i), HOLDS(held[i])))
#endif

/* Another member has data under a record that names this incarnation. */
#ifdef ALONE
#define FOUNDED(i, j) (false)
#else
#define FOUNDED(i, j) (IS_DATA(heard[PAIR(i, j)]) && NAMED(RECORD_OF(heard[PAIR(i, j)]), i) == incarnation[i])
#endif
#define MAY_FOUND(i) (BLANK(i) && held[i] && data[i] != held[i] && (ALL_HOLD(i) || \
	(FOUNDED(i, OTHER(i)) && SAYS(i, OTHER(i), RUNS(held[i]))) || \
	(FOUNDED(i, THIRD(i)) && SAYS(i, THIRD(i), RUNS(held[i])))))

inline found(i) {
	data[i] = held[i];
	/* S1 */
	assert(data[OTHER(i)] == 0 || data[OTHER(i)] == data[i]);
	assert(data[THIRD(i)] == 0 || data[THIRD(i)] == data[i]);
	/* S2 */
	assert((was[i] & (1 << ID(data[i], i))) == 0);
	forget(i)
}

/* The disk is lost, or the data on it. */
inline lose(i) {
	if
	:: data[i] -> was[i] = was[i] | (1 << ID(data[i], i))
	:: else
	fi;
#ifdef KEEP
	data[i] = 0; held[i] = 0; disk[i] = 0;
#else
	data[i] = 0; held[i] = 0; disk[i] = 0; incarnation[i]++;
#endif
	torn[i] = 0;
	restart(i)
}

/* A question is under way for any time, and answered with what is true then. An
 * answer that is under way for any time needs no state of its own: until it is
 * heard the asker may do what it could do without it, and after a write it does
 * not count. Of an answer only what can matter before the next write is kept. */
inline ask(i, j) { mail[PAIR(i, j)] = 1 }
inline hear(i, j) {
	mail[PAIR(i, j)] = 0;
	heard[PAIR(i, j)] = TELLS(j);
#ifndef CACHED
	if
	:: held[i] && SAYS(i, j, HOLDS(held[i])) || FOUNDED(i, j)
	:: else -> heard[PAIR(i, j)] = 0
	fi
#endif
}

/* One look of a member in calm times: everyone is asked, and answers. */
inline look(i) {
	mail[PAIR(i, OTHER(i))] = 0; mail[PAIR(i, THIRD(i))] = 0;
	ask(i, OTHER(i)); hear(i, OTHER(i)); ask(i, THIRD(i)); hear(i, THIRD(i));
	if
	:: FOUNDED(i, OTHER(i)) && MAY_HOLD(i, RECORD_OF(heard[PAIR(i, OTHER(i))])) -> write(i, RECORD_OF(heard[PAIR(i, OTHER(i))]))
	:: else ->
		if
		:: FOUNDED(i, THIRD(i)) && MAY_HOLD(i, RECORD_OF(heard[PAIR(i, THIRD(i))])) -> write(i, RECORD_OF(heard[PAIR(i, THIRD(i))]))
		:: else
		fi
	fi
}
inline try(i) {
	look(i);
	mail[PAIR(i, OTHER(i))] = 0; mail[PAIR(i, THIRD(i))] = 0;
	ask(i, OTHER(i)); hear(i, OTHER(i)); ask(i, THIRD(i)); hear(i, THIRD(i));
	if
	:: data[i] == 0 && MAY_FOUND(i) -> found(i)
	:: else
	fi
}
inline offer(i, r) {
	if
	:: data[i] == 0 && MAY_HOLD(i, r) -> write(i, r)
	:: else
	fi
}

/* The first member proposes what it would: all are blank. */
inline propose() {
	if
	:: data[0] == 0 && data[1] == 0 && data[2] == 0 ->
		proposal = RECORD(incarnation[0], incarnation[1], incarnation[2]);
		offer(0, proposal); offer(1, proposal); offer(2, proposal)
	:: else
	fi
}

#define LOST(r) ((NAMED(r, 0) != incarnation[0]) + (NAMED(r, 1) != incarnation[1]) + (NAMED(r, 2) != incarnation[2]))
#define RUNNING(r) ((data[0] == (r) && !torn[0]) + (data[1] == (r) && !torn[1]) + (data[2] == (r) && !torn[2]))
#define ANY (data[0] -> data[0] : (data[1] -> data[1] : data[2]))

byte proposal;

inline calm() {
	propose();
	try(0); try(1); try(2);
	try(0); try(1); try(2);
	try(0); try(1); try(2);
	/* L1 */
	assert(ANY);
	assert(LOST(ANY) >= 2 || RUNNING(ANY) == N - LOST(ANY));
	ended = true;
	/* One final state, however it was reached. */
	incarnation[0] = 0; incarnation[1] = 0; incarnation[2] = 0;
	held[0] = 0; held[1] = 0; held[2] = 0; disk[0] = 0; disk[1] = 0; disk[2] = 0;
	data[0] = 0; data[1] = 0; data[2] = 0; was[0] = 0; was[1] = 0; was[2] = 0;
	torn[0] = 0; torn[1] = 0; torn[2] = 0;
	restart(0); restart(1); restart(2);
	losses = 0; proposal = 0
}

#ifdef NEW
#define TORN(i) :: atomic { !ended && MAY_FOUND(i) -> d_step { found(i); torn[i] = 1; restart(i) } }
#else
#define TORN(i)
#endif

#define EVENTS(i) \
	:: atomic { !ended && BLANK(i) && mail[PAIR(i, OTHER(i))] == 0 -> d_step { ask(i, OTHER(i)) } } \
	:: atomic { !ended && BLANK(i) && mail[PAIR(i, THIRD(i))] == 0 -> d_step { ask(i, THIRD(i)) } } \
	:: atomic { !ended && mail[PAIR(i, OTHER(i))] -> d_step { hear(i, OTHER(i)) } } \
	:: atomic { !ended && mail[PAIR(i, THIRD(i))] -> d_step { hear(i, THIRD(i)) } } \
	:: atomic { !ended && FOUNDED(i, OTHER(i)) && MAY_HOLD(i, RECORD_OF(heard[PAIR(i, OTHER(i))])) -> d_step { write(i, RECORD_OF(heard[PAIR(i, OTHER(i))])) } } \
	:: atomic { !ended && FOUNDED(i, THIRD(i)) && MAY_HOLD(i, RECORD_OF(heard[PAIR(i, THIRD(i))])) -> d_step { write(i, RECORD_OF(heard[PAIR(i, THIRD(i))])) } } \
	:: atomic { !ended && MAY_FOUND(i) -> d_step { found(i) } } \
	:: atomic { !ended -> d_step { restart(i) } } \
	TORN(i) \
	:: atomic { !ended && losses < LOSSES -> d_step { lose(i); losses++ } }

active proctype world() {
	byte a, b, c;
	do
	EVENTS(0)
	EVENTS(1)
	EVENTS(2)
	/* Somebody proposes some record. */
	:: atomic { !ended ->
		select(a : 1 .. 3); select(b : 1 .. 3); select(c : 1 .. 3);
		if
		:: a <= incarnation[0] && b <= incarnation[1] && c <= incarnation[2] ->
			proposal = RECORD(a, b, c);
			a = 0; b = 0; c = 0;
			if
			:: MAY_HOLD(0, proposal) -> d_step { write(0, proposal); proposal = 0 }
			:: MAY_HOLD(1, proposal) -> d_step { write(1, proposal); proposal = 0 }
			:: MAY_HOLD(2, proposal) -> d_step { write(2, proposal); proposal = 0 }
			:: else -> proposal = 0
			fi
		:: else -> a = 0; b = 0; c = 0
		fi }
	:: d_step { !ended -> calm() }
	:: ended -> break
	od
}
