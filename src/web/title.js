/**
 * How many requests wait, in the window's title and icon.
 */
import { t } from './text.js';

let drawn = -1;

/** @param {number} waiting */
export function showCount(waiting) {
  document.title = waiting > 0 ? `(${waiting > 10000 ? '10000+' : waiting}) ${t('title')}` : t('title');
  if (waiting === drawn) return;
  drawn = waiting;
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 64;
  const pen = canvas.getContext('2d');
  const icon = document.querySelector('link[rel=icon]');
  if (!pen || !icon) return;
  pen.fillStyle = waiting > 0 ? '#b42318' : '#1f5fbf';
  pen.beginPath();
  pen.roundRect(2, 2, 60, 60, 16);
  pen.fill();
  pen.fillStyle = pen.strokeStyle = '#ffffff';
  if (waiting > 0) {
    const text = waiting > 99 ? '99+' : String(waiting);
    pen.font = `bold ${text.length > 2 ? 28 : 40}px sans-serif`;
    pen.textAlign = 'center';
    pen.textBaseline = 'middle';
    pen.fillText(text, 32, 35);
  } else {
    pen.lineWidth = 8;
    pen.lineCap = pen.lineJoin = 'round';
    pen.beginPath();
    pen.moveTo(18, 34);
    pen.lineTo(28, 44);
    pen.lineTo(46, 22);
    pen.stroke();
  }
  icon.setAttribute('type', 'image/png');
  icon.setAttribute('href', canvas.toDataURL());
}
