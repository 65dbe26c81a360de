// Debian guests with edu move between two lab hosts, with nothing lost; and what is lost on purpose is noticed. Each suite brings its guests.
import { onPair } from './one-host.ts';
import { iommufdMoves } from './suites/iommufd-moves.ts';
import { moveControls } from './suites/move-controls.ts';
import { moves } from './suites/moves.ts';

onPair('moves between two hosts with edu', moves, iommufdMoves, moveControls);
